# Names: content-hashed where AWS cannot change a thing, and within AWS's limits.
# Plans alone: the real provider, offline. Only the account number, which takes a call to STS, is made up.

provider "aws" {
  region                      = "us-east-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

provider "aws" {
  alias                       = "tagged"
  region                      = "us-east-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true

  default_tags {
    tags = { Team = "search" }
  }
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "123456789012" }
}

variables {
  name = "unit"
}

run "before" {
  command = plan
}

run "same_again" {
  command = plan

  variables {
    tags = { owner = "somebody-else" } # tags can be changed in place
  }

  assert {
    condition     = output.model_names["primary"] == run.before.model_names["primary"] && output.endpoint_configuration_name == run.before.endpoint_configuration_name
    error_message = "What can be changed in place gives no new names."
  }
}

run "another_environment" {
  command = plan

  variables {
    environment = { OMP_NUM_THREADS = "1" }
  }

  assert {
    condition     = output.model_names["primary"] != run.before.model_names["primary"] && output.endpoint_configuration_name != run.before.endpoint_configuration_name
    error_message = "A new environment variable makes a new model and a new configuration."
  }
  assert {
    condition     = aws_sagemaker_endpoint.this[0].name == run.before.endpoint_name
    error_message = "The endpoint stays."
  }
}

run "another_instance_type" {
  command = plan

  variables {
    variants = { primary = { instance_type = "ml.c5.xlarge" } }
  }

  assert {
    condition     = output.model_names["primary"] == run.before.model_names["primary"] && output.endpoint_configuration_name != run.before.endpoint_configuration_name
    error_message = "A new instance type makes a new configuration of the same model."
  }
}

run "scaling_is_not_in_the_names" {
  command = plan

  variables {
    variants = { primary = { autoscaling = { min_capacity = 1, max_capacity = 4, invocations_per_instance = 70 } } }
  }

  assert {
    condition     = output.endpoint_configuration_name == run.before.endpoint_configuration_name
    error_message = "Scaling is changed without touching the endpoint."
  }
}

run "another_vpc" {
  command = plan

  variables {
    vpc = { subnet_ids = ["subnet-1", "subnet-2"], security_group_ids = ["sg-1"] }
  }

  assert {
    condition     = output.model_names["primary"] != run.before.model_names["primary"]
    error_message = "A VPC makes a new model: AWS cannot change one, whatever the provider plans."
  }
}

run "another_vpc_order" {
  command = plan

  variables {
    vpc = { subnet_ids = ["subnet-2", "subnet-1"], security_group_ids = ["sg-1"] }
  }

  assert {
    condition     = output.model_names["primary"] == run.another_vpc.model_names["primary"]
    error_message = "The subnets' order makes no difference."
  }
}

run "another_revision" {
  command = plan

  variables {
    revision = "2"
  }

  assert {
    condition     = output.model_names["primary"] != run.before.model_names["primary"] && output.endpoint_configuration_name != run.before.endpoint_configuration_name
    error_message = "A new revision makes everything new with the same settings."
  }
}

run "another_role_path" {
  command = plan

  variables {
    role = { path = "/ml/" }
  }

  assert {
    condition     = aws_iam_role.this[0].name != run.before.role_name && output.model_names["primary"] != run.before.model_names["primary"]
    error_message = "A new path replaces the role, so the new role needs a name of its own while both are there."
  }
}

run "long_name" {
  command = plan

  variables {
    name                    = join("-", [for n in range(30) : "very-long"])
    variants                = { an-unusually-long-variant-name-that-fits-in-sixty-three-letters = {} }
    invoke_policies         = { a-policy-name-of-forty-characters-123456 = ["a/*"] }
    create_publisher_policy = true
    dashboard               = true
    notifications           = { create_topic = true }
  }

  assert {
    condition     = length(output.endpoint_name) == 63 && length(output.endpoint_configuration_name) == 63
    error_message = "Endpoint and configuration fit in 63 characters."
  }
  assert {
    condition     = alltrue([for name in values(output.model_names) : length(name) <= 63])
    error_message = "Models fit in 63 characters."
  }
  assert {
    condition     = length(output.bucket) <= 63
    error_message = "The bucket fits in 63 characters."
  }
  assert {
    condition     = length(output.role_name) <= 64
    error_message = "The role fits in 64 characters."
  }
  assert {
    condition     = alltrue([for policy in values(aws_iam_policy.invoke) : length(policy.name) <= 128]) && length(aws_iam_policy.publisher[0].name) <= 128
    error_message = "Policies fit in 128 characters."
  }
  assert {
    condition     = length(aws_cloudwatch_event_rule.endpoint_state[0].name) <= 64
    error_message = "The event rule fits in 64 characters."
  }
  assert {
    condition     = alltrue([for name in values(output.alarm_names) : length(name) <= 255])
    error_message = "Alarms fit in 255 characters."
  }
}

run "another_long_name" {
  command = plan

  variables {
    name     = "${join("-", [for n in range(30) : "very-long"])}-2"
    variants = { an-unusually-long-variant-name-that-fits-in-sixty-three-letters = {} }
  }

  assert {
    condition     = output.endpoint_name != run.long_name.endpoint_name && output.bucket != run.long_name.bucket && output.role_name != run.long_name.role_name
    error_message = "Long names that begin alike do not meet."
  }
}

# Two endpoints of an account share the names of alarms and policies.
run "hyphens_on_one_side" {
  command = plan

  variables {
    name     = "a"
    variants = { b-c = {}, c = {} }
    alarms = {
      enabled = true
      targets = { for name in ["b-c", "c", "latency", "target-c", "b-c-latency", "c-latency", "primary-latency", "no-rollback"] : name => { target = "x", p99_seconds = 1 } }
    }
  }

  assert {
    condition     = output.alarm_names["c/latency"] == "a-c-latency" && output.alarm_names["target/c"] == "a-target-c"
    error_message = "What has no hyphen is named as ever."
  }
  assert {
    condition     = length(distinct(values(output.alarm_names))) == 2 * 9 + 8
    error_message = "Within a module, all alarms have names of their own."
  }
  assert {
    condition     = alltrue([for name in values(output.alarm_names) : startswith(name, "a-")])
    error_message = "Each begins with the endpoint's name and a hyphen: status looks for them so."
  }
}

run "hyphens_on_the_other" {
  command = plan

  variables {
    name     = "a-b"
    variants = { c = {}, target = {}, target-c = {} }
    alarms   = { enabled = true, targets = { c = { target = "x", p99_seconds = 1 } } }
  }

  assert {
    condition     = length(setintersection(values(output.alarm_names), values(run.hyphens_on_one_side.alarm_names))) == 0
    error_message = "The endpoint a with the variant b-c does not meet a-b with c."
  }
}

run "hyphens_before_target" {
  command = plan

  variables {
    name       = "a-target"
    variants   = { primary = {}, b-c = {} }
    alarms     = { enabled = true, targets = { c = { target = "x", p99_seconds = 1 } } }
    deployment = { rollback_on = [] }
  }

  assert {
    condition     = length(setintersection(concat(values(output.alarm_names), aws_cloudwatch_metric_alarm.never[*].alarm_name), values(run.hyphens_on_one_side.alarm_names))) == 0
    error_message = "The endpoint a-target does not meet the alarms on single models of a."
  }
}

run "capitals" {
  command = plan

  variables {
    name = "Unit-Test"
  }

  assert {
    condition     = output.bucket == "unit-test-123456789012-us-east-1"
    error_message = "Buckets are written in lower case."
  }
  assert {
    condition     = strcontains(output.invoke_policy_json, "endpoint/unit-test") && output.endpoint_name == "Unit-Test"
    error_message = "AWS writes an endpoint's ARN in lower case, and its name as given."
  }
}

run "refuses_underscores" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    name = "my_endpoint"
  }

  expect_failures = [var.name]
}

run "refuses_too_many_tags" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    tags = { for n in range(51) : "key-${n}" => "value" }
  }

  expect_failures = [var.tags]
}

run "refuses_reserved_tags" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    tags = { "AWS:owner" = "me" }
  }

  expect_failures = [var.tags]
}

run "takes_fifty_tags_with_the_providers" {
  command = plan

  providers = { aws = aws.tagged }

  variables {
    tags = merge({ for n in range(49) : "key-${n}" => "value" }, { Team = "models", none = null })
  }

  assert {
    condition     = length(aws_sagemaker_endpoint.this[0].tags_all) == 50
    error_message = "A tag that both give is one tag, and a null is none."
  }
}

run "refuses_too_many_tags_with_the_providers" {
  command = plan

  providers = { aws = aws.tagged }

  variables {
    tags = { for n in range(50) : "key-${n}" => "value" }
  }

  expect_failures = [terraform_data.place]
}

run "refuses_the_providers_tag_in_other_capitals" {
  command = plan

  providers = { aws = aws.tagged }

  variables {
    tags = { team = "models" }
  }

  expect_failures = [terraform_data.place]
}
