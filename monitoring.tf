locals {
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

  # What the access log of this project's own container calls things (docs/container.md).
  access_log = { call = "invoke", milliseconds = "total_ms", cold = "cold" }

  target_namespace = "mme/${local.endpoint_name}"
  target_alarms    = var.create ? var.alarms.targets : {}

  # Two endpoints of an account share its alarms, and "a" with the variant "b-c" is not to meet "a-b" with "c". A variant
  # without a hyphen can be told from the endpoint by the last one; any other is set apart by what no endpoint's name has
  # in it. The same for alarms on single models, where a slash keeps them from variants that are called "target-…".
  alarm_prefixes     = { for key in keys(local.variants) : key => "${local.endpoint_name}${strcontains(key, "-") ? "--" : "-"}${key}" }
  target_alarm_names = { for key in keys(local.target_alarms) : key => "${local.endpoint_name}${strcontains(key, "-") ? "--target/" : "-target-"}${key}" }
  insight_rules = {
    for key, filters in {
      calls-by-target = [{ Match = "$.event", In = [local.access_log.call] }]
      # A model's first call since it was loaded says so, for whoever asked for it waited for that.
      loads-by-target = [{ Match = "$.event", In = [local.access_log.call] }, { Match = "$.${local.access_log.cold}", IsPresent = true }]
    } : key => filters if var.create && var.contributor_insights
  }

  create_topic = var.create && var.notifications.create_topic
  # CreateTopic and PutRule take what is there under the name for theirs, and would destroy it with the endpoint: so the
  # names are not the bare endpoint's.
  topic_arns = merge({ for key, arn in var.notifications.topic_arns : key => nonsensitive(arn) }, { for topic in aws_sns_topic.this : "this" => topic.arn })
}

resource "aws_cloudwatch_log_group" "this" {
  # checkov:skip=CKV_AWS_158:CloudWatch encrypts by itself; a key of one's own is a choice (logs.kms_key_arn)
  # checkov:skip=CKV_AWS_338:a year of inference logs is the caller's choice (logs.retention_days), not the default
  count = var.create && var.logs.create ? 1 : 0

  name              = local.log_group_name
  retention_in_days = var.logs.retention_days
  kms_key_id        = var.logs.kms_key_arn

  tags = local.tags

  lifecycle {
    precondition {
      condition     = alltrue([for arn in nonsensitive(var.logs.kms_key_arn)[*] : split(":", arn)[3] == local.region])
      error_message = "logs.kms_key_arn is not in ${local.region}: ${coalesce(nonsensitive(var.logs.kms_key_arn), "null")}. AWS encrypts with keys of the same region only."
    }
  }
}

# The names are built from inputs and not read from the endpoint: the alarms have to be there before it.
resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${local.alarm_prefixes[each.value.variant]}-${each.value.kind}"
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

  tags = local.tags

  # AWS takes an alarm, a topic, an event rule or a dashboard that is there for what was asked for. Of two calls of the
  # module with one name (or one whose state was lost) the second has to fail before it has another's in its state,
  # which its destroy would take away. So these wait for what cannot be made twice.
  depends_on = [
    aws_cloudwatch_log_group.this,
    aws_iam_role.this,
    aws_s3_bucket.this,
    aws_sagemaker_model.this,
  ]
}

# An endpoint to which a rollback configuration is added later is replaced, and AWS takes none without an alarm. Where
# no other is wanted, this one, which no number of calls sets off, holds the place.
resource "aws_cloudwatch_metric_alarm" "never" {
  # checkov:skip=CKV_AWS_319:it must never act
  count = var.create && var.deployment.rollback_enabled && length(var.deployment.rollback_on) + length(var.deployment.rollback_alarm_names) == 0 ? 1 : 0

  alarm_name          = "${local.endpoint_name}-no-rollback"
  alarm_description   = "Never goes off: it holds the place of rollback alarms of the endpoint ${local.endpoint_name}."
  namespace           = "AWS/SageMaker"
  metric_name         = "Invocations"
  statistic           = "Sum"
  comparison_operator = "LessThanThreshold"
  threshold           = -1
  period              = 300
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"

  dimensions = {
    EndpointName = local.endpoint_name
    VariantName  = keys(local.variants)[0]
  }

  tags = local.tags

  depends_on = [
    aws_cloudwatch_log_group.this,
    aws_iam_role.this,
    aws_s3_bucket.this,
    aws_sagemaker_model.this,
  ]
}

# Single models, from the access log of this project's own container. AWS has no metric for one model.

resource "aws_cloudwatch_log_metric_filter" "target" {
  for_each = local.target_alarms

  name           = "${local.endpoint_name}-target-${each.key}"
  log_group_name = aws_cloudwatch_log_group.this[0].name
  pattern        = "{ ($.event = \"${local.access_log.call}\") && ($.target = \"${each.value.target}\") }"

  metric_transformation {
    namespace = local.target_namespace
    name      = each.key
    value     = "$.${local.access_log.milliseconds}"
    unit      = "Milliseconds"
  }
}

resource "aws_cloudwatch_metric_alarm" "target" {
  for_each = local.target_alarms

  alarm_name          = local.target_alarm_names[each.key]
  alarm_description   = "The container's time for calls of ${each.value.target}, 99th percentile, milliseconds. Endpoint ${local.endpoint_name}."
  namespace           = local.target_namespace
  metric_name         = one(aws_cloudwatch_log_metric_filter.target[each.key].metric_transformation).name
  extended_statistic  = "p99"
  comparison_operator = "GreaterThanThreshold"
  threshold           = each.value.p99_seconds * 1000
  period              = each.value.period_seconds
  evaluation_periods  = each.value.evaluation_periods
  treat_missing_data  = "notBreaching"

  alarm_actions = values(local.topic_arns)
  ok_actions    = values(local.topic_arns)

  tags = local.tags
}

# Which models are called most, and which are loaded most because they were not in memory.
resource "aws_cloudwatch_contributor_insight_rule" "this" {
  for_each = local.insight_rules

  rule_name = "${local.endpoint_name}-${each.key}"
  rule_definition = jsonencode({
    Schema        = { Name = "CloudWatchLogRule", Version = 1 }
    AggregateOn   = "Count"
    Contribution  = { Keys = ["$.target"], Filters = each.value }
    LogFormat     = "JSON"
    LogGroupNames = [aws_cloudwatch_log_group.this[0].name]
  })
  rule_state = "ENABLED"

  tags = local.tags
}

# Notifications

data "aws_iam_policy_document" "topic" {
  count = local.create_topic ? 1 : 0

  statement {
    sid       = "PublishAlarms"
    actions   = ["sns:Publish"]
    resources = aws_sns_topic.this[*].arn

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
    resources = aws_sns_topic.this[*].arn

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }
  }
}

resource "aws_sns_topic" "this" {
  # checkov:skip=CKV_AWS_26:the messages hold names and metrics; AWS's own key for SNS would shut CloudWatch out, so a key is a choice (notifications.kms_key_arn)
  count = local.create_topic ? 1 : 0

  name              = "${local.endpoint_name}-sagemaker-alarms"
  display_name      = "SageMaker endpoint ${local.endpoint_name}"
  kms_master_key_id = var.notifications.kms_key_arn

  tags = local.tags

  lifecycle {
    precondition {
      condition     = alltrue([for arn in nonsensitive(var.notifications.kms_key_arn)[*] : split(":", arn)[3] == local.region])
      error_message = "notifications.kms_key_arn is not in ${local.region}: ${coalesce(nonsensitive(var.notifications.kms_key_arn), "null")}. AWS encrypts with keys of the same region only."
    }
  }

  depends_on = [
    aws_iam_role.this,
    aws_s3_bucket.this,
    aws_sagemaker_model.this,
  ]
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

resource "aws_sns_topic_subscription" "this" {
  for_each = local.create_topic ? var.notifications.subscriptions : {}

  topic_arn = aws_sns_topic.this[0].arn
  protocol  = each.value.protocol
  endpoint  = each.value.endpoint
}

# Tells of a rolled-back or failed endpoint even when nobody is looking at Terraform.
resource "aws_cloudwatch_event_rule" "endpoint_state" {
  count = var.create && (var.notifications.create_topic || length(var.notifications.topic_arns) > 0) ? 1 : 0

  # 64 characters at most
  name        = "${length(local.name) <= 48 ? local.name : "${substr(local.name, 0, 39)}-${substr(sha256(local.name), 0, 8)}"}-sagemaker-state"
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

  tags = local.tags

  lifecycle {
    precondition {
      condition     = alltrue([for arn in values(var.notifications.topic_arns) : split(":", nonsensitive(arn))[3] == local.region])
      error_message = "notifications.topic_arns: alarms tell topics of their own region only, ${local.region}. Elsewhere: ${join(", ", [for key, arn in var.notifications.topic_arns : key if split(":", nonsensitive(arn))[3] != local.region])}."
    }
  }

  depends_on = [
    aws_iam_role.this,
    aws_s3_bucket.this,
    aws_sagemaker_model.this,
  ]
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

locals {
  # Single models: who is called most, who is loaded most, and how long the calls take, from the access log.
  insight_widgets = concat([
    for key, title in { calls-by-target = "Models that are called most", loads-by-target = "Models that are loaded most, since they were not in memory" } : {
      type                              = "metric"
      title                             = title
      properties = {
        period      = 300
        view        = "timeSeries"
        stacked     = false
        insightRule = { maxContributorCount = 10, orderBy = "Sum", ruleName = try(aws_cloudwatch_contributor_insight_rule.this[key].rule_name, null) }
        legend      = { position = "right" }
      }
    } if contains(keys(local.insight_rules), key)
    ], [
    for title in ["Time in the container by model, 99th percentile"] : {
      type  = "log"
      title = title
      properties = {
        view  = "table"
        query = "SOURCE '${local.log_group_name}' | filter event = '${local.access_log.call}' | stats count(*) as calls, pct(${local.access_log.milliseconds}, 99) as p99_ms, max(${local.access_log.milliseconds}) as max_ms by target | sort calls desc | limit 20"
      }
    } if length(local.insight_rules) > 0
  ])
}

resource "aws_cloudwatch_dashboard" "this" {
  count = var.create && var.dashboard ? 1 : 0

  # Dashboards are global, so the name holds the region.
  dashboard_name = "${local.endpoint_name}-sagemaker-${local.region}"
  dashboard_body = jsonencode({
    widgets = concat([
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
      ], [
      for index, widget in local.insight_widgets : {
        type       = widget.type
        x          = index % 2 * local.widget_width
        y          = ceil(length(local.dashboard_widgets) / 2) * 6 + floor(index / 2) * 6
        width      = local.widget_width
        height     = 6
        properties = merge(widget.properties, { region = local.region, title = widget.title })
      }
    ])
  })

  depends_on = [
    aws_cloudwatch_log_group.this,
    aws_iam_role.this,
    aws_s3_bucket.this,
    aws_sagemaker_model.this,
  ]
}
