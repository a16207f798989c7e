# Values from something that is marked as a secret, as every SSM parameter is: names, prefixes and ARNs are none, so the
# outputs stay plain. (A root that has a sensitive value in an output that is not marked as such does not plan at all.)

provider "aws" {
  region                      = "eu-central-1"
  access_key                  = "made-up"
  secret_key                  = "made-up"
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

run "everything_that_names_something" {
  command = plan

  variables {
    name         = sensitive("unit")
    revision     = sensitive("1")
    tags         = { team = sensitive("search") }
    environment  = { TOKEN = sensitive("secret") }
    image_uri    = sensitive("123456789012.dkr.ecr.eu-central-1.amazonaws.com/mme:1")
    model_prefix = sensitive("deep/models/")
    variants = {
      primary = {
        instance_type  = sensitive("ml.m5.2xlarge")
        instance_count = sensitive(1)
        environment    = { KEY = sensitive("secret") }
        core_dump      = { destination_uri = sensitive("s3://elsewhere/cores"), kms_key_arn = sensitive("arn:aws:kms:eu-central-1:123456789012:key/1") }
        autoscaling = {
          min_capacity    = sensitive(1)
          max_capacity    = sensitive(2)
          cpu_utilization = sensitive(70)
          schedules       = { night = { schedule = sensitive("rate(1 day)"), min_capacity = sensitive(1), max_capacity = sensitive(2) } }
        }
      }
    }
    bucket = {
      name                = sensitive("somewhere")
      kms_key_arn         = sensitive("arn:aws:kms:eu-central-1:123456789012:key/1")
      former_kms_key_arns = [sensitive("arn:aws:kms:eu-central-1:123456789012:key/2")]
      access_log          = { bucket = sensitive("logs-of-others") }
    }
    role = {
      name                     = sensitive("models")
      path                     = sensitive("/ml/")
      permissions_boundary_arn = sensitive("arn:aws:iam::123456789012:policy/most")
      policy_arns              = { more = sensitive("arn:aws:iam::123456789012:policy/more") }
    }
    vpc                     = { subnet_ids = sensitive(["subnet-1", "subnet-2"]), security_group_ids = [sensitive("sg-1")] }
    volume_kms_key_arn      = sensitive("arn:aws:kms:eu-central-1:123456789012:key/1")
    invoke_policies         = { team-a = sensitive(["team-a/*"]) }
    create_publisher_policy = true
    alarms                  = { enabled = true, settings = { latency = { threshold = sensitive(1) } }, targets = { a = { target = sensitive("bert-*"), p99_seconds = sensitive(1) } } }
    contributor_insights    = true
    dashboard               = true
    logs                    = { retention_days = sensitive(60), kms_key_arn = sensitive("arn:aws:kms:eu-central-1:123456789012:key/1") }
    notifications = {
      create_topic  = true
      kms_key_arn   = sensitive("arn:aws:kms:eu-central-1:123456789012:key/1")
      topic_arns    = { oncall = sensitive("arn:aws:sns:eu-central-1:123456789012:oncall") }
      subscriptions = { pager = { protocol = "https", endpoint = sensitive("https://example.com/token") } }
    }
    data_capture = { destination_uri = sensitive("s3://elsewhere/captured"), kms_key_arn = sensitive("arn:aws:kms:eu-central-1:123456789012:key/1") }
  }

  assert {
    condition     = !issensitive(output.toolchain) && output.toolchain == { endpoint_name = "unit", bucket = "somewhere", model_prefix = "deep/models/", region = "eu-central-1" }
    error_message = "the toolchain's output is not plain: ${jsonencode(nonsensitive(output.toolchain))}"
  }

  assert {
    condition     = !issensitive(output.publisher_policy_json) && strcontains(output.publisher_policy_json, "deep/models/")
    error_message = "the publisher's policy is not plain"
  }

  assert {
    condition     = issensitive(aws_sagemaker_model.this["primary"].primary_container[0].environment["TOKEN"]) && issensitive(aws_sagemaker_model.this["primary"].primary_container[0].environment["KEY"])
    error_message = "what a caller marks as a secret is no longer marked"
  }

  assert {
    condition     = issensitive(aws_sns_topic_subscription.this["pager"].endpoint)
    error_message = "a subscription's address may hold a token"
  }
}

run "a_role_and_a_bucket_that_exist" {
  command = plan

  variables {
    bucket = { create = false, name = sensitive("theirs"), kms_key_arn = sensitive("arn:aws:kms:eu-central-1:123456789012:key/1") }
    role   = { create = false, arn = sensitive("arn:aws:iam::123456789012:role/theirs") }
    vpc    = sensitive({ subnet_ids = ["subnet-1", "subnet-2"], security_group_ids = ["sg-1"] })
  }

  assert {
    condition     = output.bucket == "theirs" && output.role_arn == "arn:aws:iam::123456789012:role/theirs"
    error_message = "the outputs are not plain"
  }
}

run "a_key_of_another_region_is_named" {
  command = plan

  variables {
    volume_kms_key_arn = sensitive("arn:aws:kms:us-east-1:123456789012:key/1")
  }

  expect_failures = [aws_sagemaker_endpoint_configuration.this[0]]
}

# An address becomes part of its subscription's own address in the state, which cannot be hidden.
run "a_secret_address_is_no_key" {
  command = plan

  variables {
    notifications = { create_topic = true, emails = [sensitive("oncall@example.com")] }
  }

  expect_failures = [var.notifications]
}
