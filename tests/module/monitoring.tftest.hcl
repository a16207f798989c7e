# Alarms, dashboard, logs, notifications.
# Plans alone: the real provider, offline. Only the account number, which takes a call to STS, is made up.

provider "aws" {
  region                      = "us-east-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

variables {
  name = "unit"
}

run "everything" {
  command = plan

  variables {
    variants = { a = {}, b = {} }
    alarms = {
      enabled = true
      settings = {
        latency = { threshold = 2, evaluation_periods = 1 }
        disk    = { enabled = false }
      }
    }
    dashboard     = true
    notifications = { create_topic = true, emails = ["oncall@example.com"], topic_arns = { pager = "arn:aws:sns:us-east-1:123456789012:pager" } }
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.this) == 16 && !contains(keys(aws_cloudwatch_metric_alarm.this), "a/disk")
    error_message = "Nine kinds for each of two variants, less the one that is turned off."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["a/latency"].threshold == 2000000 && aws_cloudwatch_metric_alarm.this["a/latency"].extended_statistic == "p99"
    error_message = "Seconds are turned into CloudWatch's microseconds."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["a/latency"].datapoints_to_alarm == 1
    error_message = "No more datapoints than periods."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["b/memory"].namespace == "/aws/sagemaker/Endpoints" && aws_cloudwatch_metric_alarm.this["b/memory"].dimensions == tomap({ EndpointName = "unit", VariantName = "b" })
    error_message = "Instances' metrics are in a namespace of their own."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["a/thrash"].statistic == "SampleCount" && aws_cloudwatch_metric_alarm.this["a/cache_hit"].comparison_operator == "LessThanThreshold"
    error_message = "Thrash is a number of unloads; cache hits are bad when few."
  }
  assert {
    condition     = length(aws_cloudwatch_event_rule.endpoint_state) == 1 && toset(keys(aws_cloudwatch_event_target.endpoint_state)) == toset(["pager", "this"])
    error_message = "A rolled-back update is told to both topics."
  }
  assert {
    condition     = jsondecode(aws_cloudwatch_event_rule.endpoint_state[0].event_pattern).resources == ["arn:aws:sagemaker:us-east-1:123456789012:endpoint/unit"]
    error_message = "Only this endpoint's events."
  }
  assert {
    condition     = length(jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets) == 9
    error_message = "The dashboard has its nine charts."
  }
  assert {
    condition = jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets[3].properties.metrics == [
      ["AWS/SageMaker", "ModelCacheHit", "EndpointName", "unit", "VariantName", "a", { label = "a ModelCacheHit" }],
      ["AWS/SageMaker", "ModelCacheHit", "EndpointName", "unit", "VariantName", "b", { label = "b ModelCacheHit" }],
    ]
    error_message = "Each chart shows each variant."
  }
}

run "single_models" {
  command = plan

  variables {
    alarms               = { targets = { bert = { target = "bert-*", p99_seconds = 0.5 } } }
    contributor_insights = true
    dashboard            = true
  }

  assert {
    condition     = aws_cloudwatch_log_metric_filter.target["bert"].pattern == "{ ($.event = \"invoke\") && ($.target = \"bert-*\") }"
    error_message = "The calls of the model, from the container's access log."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.target["bert"].threshold == 500 && aws_cloudwatch_metric_alarm.target["bert"].extended_statistic == "p99" && aws_cloudwatch_metric_alarm.target["bert"].metric_name == "bert" && aws_cloudwatch_metric_alarm.target["bert"].namespace == "mme/unit"
    error_message = "Seconds are turned into the log's milliseconds."
  }
  assert {
    condition     = toset(keys(aws_cloudwatch_contributor_insight_rule.this)) == toset(["calls-by-target", "loads-by-target"]) && jsondecode(aws_cloudwatch_contributor_insight_rule.this["calls-by-target"].rule_definition).Contribution == { Keys = ["$.target"], Filters = [{ Match = "$.event", In = ["invoke"] }] }
    error_message = "Who is called most, and who is loaded most."
  }
  assert {
    condition     = jsondecode(aws_cloudwatch_contributor_insight_rule.this["loads-by-target"].rule_definition).Contribution.Filters[1] == { Match = "$.cold", IsPresent = true } && strcontains(aws_cloudwatch_dashboard.this[0].dashboard_body, "pct(total_ms, 99)")
    error_message = "Fields are called as the container's access log calls them."
  }
  assert {
    condition     = length(jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets) == 12
    error_message = "The dashboard has them as well."
  }
}

run "refuses_keys_and_topics_of_another_region" {
  command = plan

  variables {
    logs = { kms_key_arn = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555" }
    notifications = {
      create_topic = true
      kms_key_arn  = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"
      topic_arns   = { there = "arn:aws:sns:eu-west-1:123456789012:there" }
    }
  }

  expect_failures = [aws_cloudwatch_log_group.this, aws_sns_topic.this, aws_cloudwatch_event_rule.endpoint_state]
}

run "rollback_alarms_alone" {
  command = plan

  variables {
    deployment = { rollback_on = ["latency"] }
    alarms     = { settings = { latency = { threshold = 1, period_seconds = 30 } } }
    logs       = { create = false }
  }

  assert {
    condition     = keys(aws_cloudwatch_metric_alarm.this) == ["primary/latency"] && aws_cloudwatch_metric_alarm.this["primary/latency"].period == 30
    error_message = "Alarms that roll back are there without alarms.enabled, with their settings."
  }
  assert {
    condition     = length(aws_cloudwatch_log_group.this) == 0 && length(aws_cloudwatch_event_rule.endpoint_state) == 0
    error_message = "No log group and no event rule unless wanted."
  }
}

run "refuses_unknown_alarms" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    alarms = { settings = { cpu = { threshold = 1 } } }
  }

  expect_failures = [var.alarms]
}

run "refuses_odd_periods" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    alarms = { settings = { latency = { period_seconds = 45 } } }
  }

  expect_failures = [var.alarms]
}

run "refuses_more_datapoints_than_periods" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    alarms = { settings = { latency = { evaluation_periods = 2, datapoints_to_alarm = 3 } } }
  }

  expect_failures = [var.alarms]
}

run "refuses_turning_off_a_rollback_alarm" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    alarms = { settings = { errors_5xx = { enabled = false } } }
  }

  expect_failures = [var.alarms]
}

run "refuses_odd_retention" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    logs = { retention_days = 31 }
  }

  expect_failures = [var.logs]
}

run "refuses_mail_without_a_topic" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    notifications = { emails = ["oncall@example.com"] }
  }

  expect_failures = [var.notifications]
}

run "refuses_odd_addresses" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    notifications = { create_topic = true, emails = ["oncall"] }
  }

  expect_failures = [var.notifications]
}

run "refuses_topics_by_name" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    notifications = { topic_arns = { oncall = "oncall" } }
  }

  expect_failures = [var.notifications]
}
