locals {
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

  alarms = merge([
    for key in keys(local.variants) : {
      for kind, alarm in local.alarm_kinds : "${key}/${kind}" => merge(alarm, {
        kind    = kind
        variant = key
        # A null in settings stands for the alarm's own value.
        threshold          = coalesce(try(var.alarms.settings[kind].threshold, null), alarm.threshold) * alarm.scale
        period             = coalesce(try(var.alarms.settings[kind].period_seconds, null), alarm.period)
        evaluation_periods = coalesce(try(var.alarms.settings[kind].evaluation_periods, null), alarm.evaluation_periods)
        datapoints = min(
          coalesce(try(var.alarms.settings[kind].datapoints_to_alarm, null), alarm.datapoints),
          coalesce(try(var.alarms.settings[kind].evaluation_periods, null), alarm.evaluation_periods),
        )
      })
      if contains(var.deployment.rollback_on, kind) || (var.alarms.enabled && try(var.alarms.settings[kind].enabled, true))
    }
  ]...)

  create_topic = var.create && var.notifications.create_topic
  topic_arns   = merge(var.notifications.topic_arns, { for topic in aws_sns_topic.this : "this" => topic.arn })
}

resource "aws_cloudwatch_log_group" "this" {
  # checkov:skip=CKV_AWS_158:CloudWatch encrypts by itself; a key of one's own is a choice (logs.kms_key_arn)
  # checkov:skip=CKV_AWS_338:a year of inference logs is the caller's choice (logs.retention_days), not the default
  count = var.create && var.logs.create ? 1 : 0

  name              = local.log_group_name
  retention_in_days = var.logs.retention_days
  kms_key_id        = var.logs.kms_key_arn

  tags = var.tags
}

# The names are built from inputs and not read from the endpoint: the alarms have to be there before it.
resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${local.endpoint_name}-${each.value.variant}-${each.value.kind}"
  alarm_description   = "${each.value.description}. Endpoint ${local.endpoint_name}, variant ${each.value.variant}."
  namespace           = contains(["disk", "memory"], each.value.kind) ? "/aws/sagemaker/Endpoints" : "AWS/SageMaker"
  metric_name         = each.value.metric
  statistic           = startswith(each.value.statistic, "p") ? null : each.value.statistic
  extended_statistic  = startswith(each.value.statistic, "p") ? each.value.statistic : null
  comparison_operator = each.value.above ? "GreaterThanThreshold" : "LessThanThreshold"
  threshold           = each.value.threshold
  period              = each.value.period
  evaluation_periods  = each.value.evaluation_periods
  datapoints_to_alarm = each.value.datapoints
  # No traffic is no fault; and an alarm without data would keep updates from starting.
  treat_missing_data = "notBreaching"

  dimensions = {
    EndpointName = local.endpoint_name
    VariantName  = each.value.variant
  }

  alarm_actions = values(local.topic_arns)
  ok_actions    = values(local.topic_arns)

  tags = var.tags
}

# Notifications

data "aws_iam_policy_document" "topic" {
  count = local.create_topic ? 1 : 0

  statement {
    sid       = "PublishAlarms"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.this[0].arn]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account_id]
    }
  }

  # No condition here: EventBridge does not publish to topics whose policy sets one for it.
  statement {
    sid       = "PublishEvents"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.this[0].arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }
  }
}

resource "aws_sns_topic" "this" {
  # checkov:skip=CKV_AWS_26:the messages hold names and metrics; AWS's own key for SNS would shut CloudWatch out, so a key is a choice (notifications.kms_key_arn)
  count = local.create_topic ? 1 : 0

  name              = local.endpoint_name
  display_name      = "SageMaker endpoint ${local.endpoint_name}"
  kms_master_key_id = var.notifications.kms_key_arn

  tags = var.tags
}

resource "aws_sns_topic_policy" "this" {
  count = local.create_topic ? 1 : 0

  arn    = aws_sns_topic.this[0].arn
  policy = data.aws_iam_policy_document.topic[0].json
}

resource "aws_sns_topic_subscription" "email" {
  for_each = local.create_topic ? var.notifications.emails : []

  topic_arn = aws_sns_topic.this[0].arn
  protocol  = "email"
  endpoint  = each.value
}

# Tells of a rolled-back or failed endpoint even when nobody is looking at Terraform.
resource "aws_cloudwatch_event_rule" "endpoint_state" {
  count = var.create && (var.notifications.create_topic || length(var.notifications.topic_arns) > 0) ? 1 : 0

  # 64 characters at most
  name        = "${length(var.name) <= 58 ? var.name : "${substr(var.name, 0, 49)}-${substr(sha256(var.name), 0, 8)}"}-state"
  description = "The SageMaker endpoint ${local.endpoint_name} failed, or rolls an update back"
  event_pattern = jsonencode({
    source      = ["aws.sagemaker"]
    detail-type = ["SageMaker Endpoint State Change"]
    resources   = [local.endpoint_arn]
    # AWS's documentation shows the events' spelling in capitals and the API's in camel case.
    detail = {
      EndpointStatus = ["FAILED", "Failed", "ROLLING_BACK", "RollingBack", "UPDATE_ROLLBACK_FAILED", "UpdateRollbackFailed"]
    }
  })

  tags = var.tags
}

resource "aws_cloudwatch_event_target" "endpoint_state" {
  for_each = var.create ? merge(var.notifications.topic_arns, { for key in ["this"] : key => null if var.notifications.create_topic }) : {}

  rule      = aws_cloudwatch_event_rule.endpoint_state[0].name
  target_id = each.key
  arn       = local.topic_arns[each.key]
}

# Dashboard

locals {
  widget_width = 12
  dashboard_widgets = [
    {
      title   = "Calls", stat = "Sum", namespace = "AWS/SageMaker"
      metrics = ["Invocations"], label = "calls a minute"
    },
    {
      title   = "Calls that fail", stat = "Sum", namespace = "AWS/SageMaker"
      metrics = ["Invocation4XXErrors", "Invocation5XXErrors", "InvocationModelErrors"], label = "calls a minute"
    },
    {
      title   = "Time for a call, 99th percentile", stat = "p99", namespace = "AWS/SageMaker"
      metrics = ["ModelLatency", "OverheadLatency"], label = "microseconds"
    },
    {
      title   = "Do the models fit? Part of the calls that found their model loaded", stat = "Average", namespace = "AWS/SageMaker"
      metrics = ["ModelCacheHit"], label = "1 is all of them"
    },
    {
      title   = "Models in memory, all instances", stat = "Sum", namespace = "/aws/sagemaker/Endpoints"
      metrics = ["LoadedModelCount"], label = "models"
    },
    {
      title   = "Loads and unloads: many unloads mean that models push each other out", stat = "SampleCount", namespace = "AWS/SageMaker"
      metrics = ["ModelLoadingTime", "ModelUnloadingTime"], label = "a minute"
    },
    {
      title   = "Wait for a model that is not loaded", stat = "p90", namespace = "AWS/SageMaker"
      metrics = ["ModelLoadingWaitTime", "ModelDownloadingTime", "ModelLoadingTime"], label = "microseconds"
    },
    {
      title   = "Memory and disk in use", stat = "Maximum", namespace = "/aws/sagemaker/Endpoints"
      metrics = ["MemoryUtilization", "DiskUtilization"], label = "percent"
    },
    {
      title   = "CPU in use", stat = "Average", namespace = "/aws/sagemaker/Endpoints"
      metrics = ["CPUUtilization"], label = "100 for each core"
    },
  ]
}

resource "aws_cloudwatch_dashboard" "this" {
  count = var.create && var.dashboard ? 1 : 0

  # Dashboards are global, so the name holds the region.
  dashboard_name = "${local.endpoint_name}-${local.region}"
  dashboard_body = jsonencode({
    widgets = [
      for index, widget in local.dashboard_widgets : {
        type   = "metric"
        x      = index % 2 * local.widget_width
        y      = floor(index / 2) * 6
        width  = local.widget_width
        height = 6
        properties = {
          title  = widget.title
          region = local.region
          view   = "timeSeries"
          stat   = widget.stat
          period = 60
          yAxis  = { left = { label = widget.label, min = 0, showUnits = false } }
          metrics = concat([
            for variant in keys(local.variants) : [
              for metric in widget.metrics :
              [widget.namespace, metric, "EndpointName", local.endpoint_name, "VariantName", variant, { label = "${variant} ${metric}" }]
            ]
          ]...)
        }
      }
    ]
  })
}
