"""The doctor at work: on live models (`live`), on a TRL trainer (`trainers`), on what a run left (`runs`)."""
