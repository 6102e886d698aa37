"""Large sets of photos through a model, on one machine or on a Ray cluster; jobs can be stopped and resumed.

    job ── what is asked for, what is there already, what came of it
      ├─ photos, sink ── where photos come from and results go: folders and buckets
      ├─ lock ── one driver at a time
      ├─ plan ── which photo belongs to which shard, fixed once and only added to
      ├─ local, on_ray ── who works on which shard
      │    └─ process ── one worker's side that outlives it   (worker ── inside it, the model)
      └─ shard, coco, convert ── the files that come out

A shard is finished when its file is there. Its name and its photos follow from the plan alone, so that work that is
done twice, after a crash, writes the same file twice: nothing is lost and nothing is there twice.
"""
