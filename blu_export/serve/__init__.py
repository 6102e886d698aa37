"""Serving a model over HTTP and gRPC.

    app ── routes, pages            oip, rpc ── the Open Inference Protocol
        └─ service ── one photo's way: decode → batcher → un-mold; models come and go
              ├─ decoding ── a pool of decoder_process, for what clients send   (decoder ── inside them; budget)
              ├─ tiled ── a photo's windows, and what they see merged
              └─ batching ── queue, deadlines, batches
                    └─ worker_process ── the network, restarted when it dies   (worker, snapshot ── inside it)
    server ── uvicorn in a process      settings ── what blu serve can be told      ray_app ── the same on a cluster
        ├─ protocol, limits, peers ── bytes, time, places and shares of clients
        ├─ middleware, errors, answers ── id, key, count; statuses; a deadline around each answer
        ├─ oip_request, render, openapi ── requests read, answers made, both described
        ├─ logs, metrics, tracing ── lines of JSON, Prometheus, OpenTelemetry
        └─ signals, hangups ── an orderly end, a new model

The worker process imports the runtime and nothing of HTTP; the server process imports HTTP and nothing of
the runtime, and parses no photo.
"""
