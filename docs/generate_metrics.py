"""Write docs/metrics.md from the schema in kullback.runs.metrics."""

from pathlib import Path

from kullback.runs.metrics import metrics_tables

if __name__ == "__main__":
    Path(__file__).with_name("metrics.md").write_text(metrics_tables(), encoding="utf-8")
