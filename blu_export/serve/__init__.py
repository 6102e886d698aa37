"""Serving a model over HTTP and gRPC.

    app ── routes, pages            oip, rpc ── the Open Inference Protocol
        └─ service ── one photo's way: decode → batcher → un-mold; models come and go
              ├─ decoding ── a pool of decoder_process, for what clients send   (decoder ── inside them; budget)
              └─ batching ── queue, deadlines, batches
                    └─ worker_process ── the network, restarted when it dies   (worker ── inside it)

The worker process imports the runtime and nothing of HTTP; the server process imports HTTP and nothing of
the runtime, and parses no photo.
"""
