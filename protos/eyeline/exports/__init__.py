"""Results in the formats that other tools read: one module a format.

- `frames`: results in frame order, each frame once, ready to write
- `coco`: COCO JSON, for pycocotools and whatever reads COCO
- `mot`: MOT Challenge text, for motmetrics and TrackEval
- `parquet`: a table for pandas, DuckDB, Spark; needs pyarrow (`pip install 'eyeline[export]'`)
"""
