# What inputs are held to, and the alarms that there are. Nothing here depends on an input, so that the inputs'
# validations may read it.
locals {
  patterns = {
    ecr_image = "^[0-9]{12}\\.dkr\\.ecr\\.[a-z0-9-]+\\.[a-z0-9.-]+/[a-z0-9._/-]+(:[a-zA-Z0-9._-]+|@sha256:[0-9a-f]{64})$"
    gpu_image = "[:-](gpu|cu[0-9]{3})(-|$)"
    kms_key   = "^arn:[a-z-]+:kms:[a-z0-9-]+:[0-9]{12}:key/[a-zA-Z0-9-]+$"
    s3_uri    = "^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"
    tag       = "^[\\pL\\pZ\\pN_.:/=+@-]*$"
    variable  = "^[a-zA-Z_][a-zA-Z0-9_]{0,999}[a-zA-Z0-9_]{0,24}$"

    gpu_type        = "^ml\\.(g|p)[0-9]"
    arm_type        = "^ml\\.[a-z]+[0-9]+g[a-z]*\\."
    local_disk_type = "^ml\\.([a-z][0-9]+[a-z]*d[a-z]*|g[0-9][a-z]*|p[4-9][a-z0-9-]*)\\."

    # One-off, at an interval, or like a crontab with years: minute, hour, day, month, weekday, year.
    at   = "^at\\([0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?\\)$"
    rate = "^rate\\((1 (minute|hour|day)|([2-9]|[1-9][0-9]+) (minutes|hours|days))\\)$"
    cron = format("^cron\\(%s\\)$", join(" ", [
      for value in [
        "[0-5]?[0-9]",
        "([01]?[0-9]|2[0-3])",
        "(0?[1-9]|[12][0-9]|3[01]|L|LW|[1-9][0-9]?W)",
        "(0?[1-9]|1[0-2]|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)",
        "([1-7]|SUN|MON|TUE|WED|THU|FRI|SAT|[1-7]L|[1-7]#[1-5]|L)",
        "(19[7-9][0-9]|2[01][0-9]{2})",
      ] : format("(\\?|(\\*|%s)(-%s)?(/[0-9]+)?(,%s(-%s)?(/[0-9]+)?)*)", value, value, value, value)
    ]))
  }

  # Stands for a key that was not given, where one expression looks at several.
  any_kms_key = "arn:aws:kms:none:000000000000:key/none"

  # CloudWatch's, in days. 0 keeps logs for ever.
  log_retention_days = [
    0, 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
  ]

  # The names of the statements in the policies that the module writes, to which callers may add their own.
  execution_sids = [
    "ReadModels", "ListModels", "DecryptModels", "LogInToRegistry", "PullImages", "WriteLogs", "PutMetrics",
    "DescribeVolumeKey", "EncryptVolumes", "CaptureData", "EncryptCapturedData", "EncryptIntoBucket", "DumpCores",
    "EncryptCoreDumps", "DescribeNetwork", "CreateNetworkInterfaces", "HandOverNetworkInterfaces",
  ]
  bucket_sids = ["DenyPlainHttp", "DenyReplacingArchives"]

  # What each alarm watches. Thresholds are in the reader's units; `scale` brings them to CloudWatch's (microseconds).
  alarm_kinds = {
    errors_5xx = {
      description = "Calls that failed in the container or the platform"
      metric      = "Invocation5XXErrors", statistic = "Average", above = true, threshold = 0.05, scale = 1
      period      = 60, evaluation_periods = 3, datapoints = 2
    }
    model_errors = {
      description = "Calls that the container did not answer with success, bad input included"
      metric      = "InvocationModelErrors", statistic = "Average", above = true, threshold = 0.25, scale = 1
      period      = 60, evaluation_periods = 5, datapoints = 3
    }
    latency = {
      description = "The container's time for a call, 99th percentile, microseconds"
      metric      = "ModelLatency", statistic = "p99", above = true, threshold = 10, scale = 1000000
      period      = 60, evaluation_periods = 5, datapoints = 3
    }
    overhead = {
      description = "SageMaker's time on top of the container's, loading of models included, 99th percentile, microseconds"
      metric      = "OverheadLatency", statistic = "p99", above = true, threshold = 10, scale = 1000000
      period      = 300, evaluation_periods = 3, datapoints = 3
    }
    cache_hit = {
      description = "Part of the calls that found their model loaded: low means that the models do not fit in memory together"
      metric      = "ModelCacheHit", statistic = "Average", above = false, threshold = 0.8, scale = 1
      period      = 300, evaluation_periods = 3, datapoints = 3
    }
    load_wait = {
      description = "How long calls waited for their model to be downloaded and loaded, 90th percentile, microseconds"
      metric      = "ModelLoadingWaitTime", statistic = "p90", above = true, threshold = 30, scale = 1000000
      period      = 300, evaluation_periods = 3, datapoints = 2
    }
    disk = {
      description = "Disk in use, percent: a full disk fails the next model's download"
      metric      = "DiskUtilization", statistic = "Maximum", above = true, threshold = 85, scale = 1
      period      = 300, evaluation_periods = 2, datapoints = 2
    }
    memory = {
      description = "Memory in use, percent"
      metric      = "MemoryUtilization", statistic = "Maximum", above = true, threshold = 90, scale = 1
      period      = 300, evaluation_periods = 3, datapoints = 3
    }
    # There is no metric for it: each unload reports its time, so the number of reports is the number of unloads.
    thrash = {
      description = "Models unloaded to make room for others: many mean that they push each other out"
      metric      = "ModelUnloadingTime", statistic = "SampleCount", above = true, threshold = 20, scale = 1
      period      = 300, evaluation_periods = 3, datapoints = 2
    }
  }
}
