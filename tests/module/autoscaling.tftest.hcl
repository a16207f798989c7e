# Autoscaling: targets, schedules, and what must not be changed under it.
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

run "targets_and_schedules" {
  command = plan

  variables {
    variants = {
      fixed = {}
      scaled = {
        instance_count = 2
        autoscaling = {
          min_capacity             = 2
          max_capacity             = 8
          invocations_per_instance = 70
          cpu_utilization          = 150
          memory_utilization       = 75
          scale_in_enabled         = false
          schedules = {
            night = { schedule = "cron(0 20 * * ? *)", timezone = "Europe/Berlin", min_capacity = 1, max_capacity = 2 }
          }
        }
      }
    }
  }

  assert {
    condition     = keys(aws_appautoscaling_target.this) == ["scaled"] && aws_appautoscaling_target.this["scaled"].resource_id == "endpoint/unit/variant/scaled"
    error_message = "Only the variant that asks for it scales."
  }
  assert {
    condition     = keys(aws_appautoscaling_policy.this) == ["scaled/target/cpu", "scaled/target/invocations", "scaled/target/memory"]
    error_message = "One policy for each target."
  }
  assert {
    condition = alltrue([for policy in values(aws_appautoscaling_policy.this) : (
      one(policy.target_tracking_scaling_policy_configuration).scale_in_cooldown == 600
      && one(policy.target_tracking_scaling_policy_configuration).scale_out_cooldown == 300
      && one(policy.target_tracking_scaling_policy_configuration).disable_scale_in
    )])
    error_message = "Slow in, faster out; and never in where that is turned off."
  }
  assert {
    condition     = one(one(aws_appautoscaling_policy.this["scaled/target/memory"].target_tracking_scaling_policy_configuration).customized_metric_specification).metric_name == "MemoryUtilization"
    error_message = "Memory is SageMaker's own metric for the variant."
  }
  assert {
    condition     = aws_appautoscaling_scheduled_action.this["scaled/schedule/night"].timezone == "Europe/Berlin"
    error_message = "Schedules are passed on."
  }
}

run "schedules_alone" {
  command = plan

  variables {
    variants = {
      primary = {
        autoscaling = {
          min_capacity = 1
          max_capacity = 1
          schedules    = { day = { schedule = "rate(1 day)", min_capacity = 1, max_capacity = 2 } }
        }
      }
    }
  }

  assert {
    condition     = length(aws_appautoscaling_policy.this) == 0 && length(aws_appautoscaling_scheduled_action.this) == 1
    error_message = "A schedule needs no target."
  }
}

run "refuses_scaling_to_zero" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 0, max_capacity = 2, invocations_per_instance = 70 } } }
  }

  expect_failures = [var.variants]
}

run "refuses_a_range_upside_down" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 3, max_capacity = 2, invocations_per_instance = 70 } } }
  }

  expect_failures = [var.variants]
}

run "refuses_a_count_outside_the_range" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 2, max_capacity = 4, invocations_per_instance = 70 }, instance_count = 5 } }
  }

  expect_failures = [var.variants]
}

run "refuses_nothing_to_act_on" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 1, max_capacity = 2 } } }
  }

  expect_failures = [var.variants]
}

run "refuses_a_target_of_zero" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 1, max_capacity = 2, invocations_per_instance = 0 } } }
  }

  expect_failures = [var.variants]
}

run "refuses_memory_over_all" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 1, max_capacity = 2, memory_utilization = 120 } } }
  }

  expect_failures = [var.variants]
}

run "refuses_bare_cron" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 1, max_capacity = 2, schedules = { night = { schedule = "0 20 * * *", min_capacity = 1, max_capacity = 1 } } } } }
  }

  expect_failures = [var.variants]
}

run "refuses_schedules_to_zero" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { autoscaling = { min_capacity = 1, max_capacity = 2, schedules = { night = { schedule = "rate(1 day)", min_capacity = 0, max_capacity = 1 } } } } }
  }

  expect_failures = [var.variants]
}
