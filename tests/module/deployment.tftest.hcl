# Updates: blue/green or rolling, with alarms that roll back.
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

run "all_at_once" {
  command = plan

  assert {
    condition     = one(one(one(aws_sagemaker_endpoint.this[0].deployment_config).blue_green_update_policy).traffic_routing_configuration).type == "ALL_AT_ONCE"
    error_message = "Blue/green, all at once."
  }
  assert {
    condition     = toset(one(one(aws_sagemaker_endpoint.this[0].deployment_config).auto_rollback_configuration).alarms[*].alarm_name) == toset(["unit-primary-errors_5xx"])
    error_message = "The rollback alarm is there from the first apply: added later it would replace the endpoint."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.this["primary/errors_5xx"].treat_missing_data == "notBreaching"
    error_message = "An endpoint without traffic can be updated."
  }
}

run "canary" {
  command = plan

  variables {
    variants = { a = { instance_count = 4 }, b = { instance_count = 2 } }
    deployment = {
      strategy                 = "CANARY"
      step                     = { type = "CAPACITY_PERCENT", value = 25 }
      wait_seconds             = 120
      termination_wait_seconds = 60
      timeout_seconds          = 3600
      rollback_on              = ["errors_5xx", "latency"]
      rollback_alarm_names     = ["business-alarm"]
    }
  }

  assert {
    condition     = one(one(one(one(aws_sagemaker_endpoint.this[0].deployment_config).blue_green_update_policy).traffic_routing_configuration).canary_size).value == 25
    error_message = "The canary's size is passed on."
  }
  assert {
    condition     = one(one(aws_sagemaker_endpoint.this[0].deployment_config).blue_green_update_policy).maximum_execution_timeout_in_seconds == 3600 && one(one(aws_sagemaker_endpoint.this[0].deployment_config).blue_green_update_policy).termination_wait_in_seconds == 60
    error_message = "The times are passed on."
  }
  assert {
    condition     = toset(one(one(aws_sagemaker_endpoint.this[0].deployment_config).auto_rollback_configuration).alarms[*].alarm_name) == toset(["business-alarm", "unit-a-errors_5xx", "unit-a-latency", "unit-b-errors_5xx", "unit-b-latency"])
    error_message = "Each variant's alarms roll back, and the caller's own."
  }
}

run "linear" {
  command = plan

  variables {
    variants   = { primary = { instance_count = 4 } }
    deployment = { strategy = "LINEAR", step = { value = 2 } }
  }

  assert {
    condition     = one(one(one(one(aws_sagemaker_endpoint.this[0].deployment_config).blue_green_update_policy).traffic_routing_configuration).linear_step_size).value == 2
    error_message = "The step is passed on."
  }
}

run "rolling" {
  command = plan

  variables {
    variants   = { primary = { instance_count = 4 } }
    deployment = { strategy = "ROLLING", step = { value = 1 }, rollback_step = { value = 2 } }
  }

  assert {
    condition     = length(one(aws_sagemaker_endpoint.this[0].deployment_config).blue_green_update_policy) == 0 && one(one(one(aws_sagemaker_endpoint.this[0].deployment_config).rolling_update_policy).rollback_maximum_batch_size).value == 2
    error_message = "Rolling in place of blue/green."
  }
}

run "without_rollback" {
  command = plan

  variables {
    deployment = { rollback_on = [] }
  }

  assert {
    condition     = toset(one(one(aws_sagemaker_endpoint.this[0].deployment_config).auto_rollback_configuration).alarms[*].alarm_name) == toset(["unit-no-rollback"]) && length(aws_cloudwatch_metric_alarm.this) == 0
    error_message = "An alarm that never goes off holds the place: the provider replaces an endpoint to which the block is added later."
  }
  assert {
    condition     = aws_cloudwatch_metric_alarm.never[0].comparison_operator == "LessThanThreshold" && aws_cloudwatch_metric_alarm.never[0].threshold < 0 && length(aws_cloudwatch_metric_alarm.never[0].alarm_actions == null ? [] : aws_cloudwatch_metric_alarm.never[0].alarm_actions) == 0
    error_message = "No number of calls sets it off, and it tells nobody."
  }
}

run "without_rollback_at_all" {
  command = plan

  variables {
    deployment = { rollback_enabled = false, rollback_on = [] }
  }

  assert {
    condition     = length(one(aws_sagemaker_endpoint.this[0].deployment_config).auto_rollback_configuration) == 0 && length(aws_cloudwatch_metric_alarm.this) + length(aws_cloudwatch_metric_alarm.never) == 0
    error_message = "No block, no alarm: for an endpoint that is imported."
  }
}

run "refuses_unknown_strategies" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants   = { primary = { instance_count = 2 } }
    deployment = { strategy = "BIG_BANG" }
  }

  expect_failures = [var.deployment]
}

run "refuses_unknown_steps" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    deployment = { step = { type = "INSTANCES" } }
  }

  expect_failures = [var.deployment]
}

run "refuses_canary_with_one_instance" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    deployment = { strategy = "CANARY" }
  }

  expect_failures = [var.deployment]
}

run "refuses_more_than_half" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants   = { primary = { instance_count = 3 } }
    deployment = { strategy = "LINEAR", step = { value = 2 } }
  }

  expect_failures = [var.deployment]
}

run "refuses_more_than_half_in_percent" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants   = { primary = { instance_count = 4 } }
    deployment = { strategy = "CANARY", step = { type = "CAPACITY_PERCENT", value = 51 } }
  }

  expect_failures = [var.deployment]
}

run "refuses_tiny_steps" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants   = { primary = { instance_count = 4 } }
    deployment = { strategy = "LINEAR", step = { type = "CAPACITY_PERCENT", value = 5 } }
  }

  expect_failures = [var.deployment]
}

run "refuses_rolling_with_two_variants" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants   = { a = { instance_count = 2 }, b = { instance_count = 2 } }
    deployment = { strategy = "ROLLING" }
  }

  expect_failures = [var.deployment]
}

run "refuses_rollback_step_of_blue_green" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    deployment = { rollback_step = { value = 1 } }
  }

  expect_failures = [var.deployment]
}

run "refuses_long_waits" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    deployment = { wait_seconds = 3601 }
  }

  expect_failures = [var.deployment]
}

run "refuses_short_limits" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    deployment = { timeout_seconds = 300 }
  }

  expect_failures = [var.deployment]
}

run "refuses_unknown_alarms" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    deployment = { rollback_on = ["cpu"] }
  }

  expect_failures = [var.deployment]
}

run "refuses_more_than_ten_alarms" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants   = { for n in range(6) : "v${n}" => {} }
    deployment = { rollback_on = ["errors_5xx", "latency"] }
  }

  expect_failures = [var.deployment]
}
