# What a caller gets who gives nothing but a name.
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

run "nothing_but_a_name" {
  command = plan

  assert {
    condition     = aws_sagemaker_endpoint.this[0].name == "unit"
    error_message = "The endpoint has the given name."
  }
  assert {
    condition     = one(aws_sagemaker_model.this["primary"].primary_container).mode == "MultiModel"
    error_message = "The model hosts many."
  }
  assert {
    condition     = one(aws_sagemaker_model.this["primary"].primary_container).model_data_url == "s3://unit-123456789012-us-east-1/models/"
    error_message = "The models are read from the prefix, with its slash."
  }
  assert {
    condition     = aws_sagemaker_model.this["primary"].enable_network_isolation
    error_message = "Containers have no network."
  }
  assert {
    condition     = one(one(aws_sagemaker_model.this["primary"].primary_container).multi_model_config).model_cache_setting == "Enabled"
    error_message = "Models stay in memory."
  }
  assert {
    condition     = one(aws_sagemaker_endpoint_configuration.this[0].production_variants).instance_type == "ml.m5.xlarge"
    error_message = "One CPU instance."
  }
  assert {
    condition     = length(aws_appautoscaling_target.this) == 0 && length(aws_cloudwatch_dashboard.this) == 0 && length(aws_sns_topic.this) == 0
    error_message = "Scaling, dashboard and topic are off."
  }
  assert {
    condition     = keys(aws_cloudwatch_metric_alarm.this) == ["primary/errors_5xx"]
    error_message = "The one alarm is that which rolls updates back."
  }
  assert {
    condition     = aws_cloudwatch_log_group.this[0].name == "/aws/sagemaker/Endpoints/unit" && aws_cloudwatch_log_group.this[0].retention_in_days == 30
    error_message = "Logs are kept for a month."
  }
  assert {
    condition     = output.model_prefix_uri == "s3://unit-123456789012-us-east-1/models/" && output.bucket == "unit-123456789012-us-east-1" && output.model_prefix == "models/" && output.region == "us-east-1"
    error_message = "What the toolchain reads is known before anything is applied."
  }
}

run "another_region" {
  command = plan

  providers = { aws = aws.frankfurt }

  assert {
    condition     = output.region == "eu-central-1" && output.bucket == "unit-123456789012-eu-central-1"
    error_message = "The region is the provider's, and the bucket's name tells the regions apart."
  }
  assert {
    condition     = strcontains(output.image_uris["primary"], ".dkr.ecr.eu-central-1.amazonaws.com/")
    error_message = "The image comes from the region's own registry."
  }
  assert {
    condition     = aws_iam_role.this[0].name == "unit-eu-central-1-${substr(sha256("unit/"), 0, 8)}-sagemaker"
    error_message = "Roles are global: their names tell the regions apart."
  }
}

provider "aws" {
  alias                       = "frankfurt"
  region                      = "eu-central-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

provider "aws" {
  alias                       = "china"
  region                      = "cn-north-1"
  access_key                  = "test"
  secret_key                  = "test"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

run "another_partition" {
  command = plan

  providers = { aws = aws.china }

  assert {
    condition     = strcontains(output.image_uris["primary"], ".dkr.ecr.cn-north-1.amazonaws.com.cn/")
    error_message = "The registry's domain is the partition's."
  }
  assert {
    condition     = strcontains(output.invoke_policy_json, "arn:aws-cn:sagemaker:cn-north-1:123456789012:endpoint/unit")
    error_message = "ARNs are the partition's."
  }
}

run "refuses_arns_of_another_partition" {
  command = plan

  providers = { aws = aws.china }

  variables {
    role = { policy_arns = { reads = "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess" } }
  }

  expect_failures = [terraform_data.place]
}

run "takes_arns_of_its_own_partition" {
  command = plan

  providers = { aws = aws.china }

  variables {
    role = { policy_arns = { reads = "arn:aws-cn:iam::aws:policy/AmazonS3ReadOnlyAccess" } }
  }

  assert {
    condition     = length(local.other_partitions) == 0
    error_message = "Nothing is wrong with them."
  }
}

run "nothing_at_all" {
  command = plan

  variables {
    create                  = false
    create_publisher_policy = true
    dashboard               = true
    invoke_policies         = { team-a = ["team-a/*"] }
    alarms                  = { enabled = true }
    notifications           = { create_topic = true, emails = ["a@example.com"], topic_arns = { oncall = "arn:aws:sns:us-east-1:123456789012:oncall" } }
    data_capture            = {}
    vpc                     = { subnet_ids = ["subnet-1", "subnet-2"], security_group_ids = ["sg-1"] }
    variants = {
      primary = { autoscaling = { min_capacity = 1, max_capacity = 2, invocations_per_instance = 70 } }
    }
  }

  assert {
    condition = sum([for resources in [
      aws_sagemaker_model.this, aws_appautoscaling_target.this, aws_appautoscaling_policy.this, aws_cloudwatch_metric_alarm.this, aws_iam_policy.invoke,
      aws_cloudwatch_event_target.endpoint_state, aws_sns_topic_subscription.email, aws_iam_role_policy_attachment.this,
      ] : length(keys(resources))]) + sum([for resources in [
      aws_sagemaker_endpoint_configuration.this, aws_sagemaker_endpoint.this, aws_s3_bucket.this, aws_s3_object.prefix, aws_iam_role.this, aws_iam_policy.publisher,
      aws_cloudwatch_log_group.this, aws_cloudwatch_dashboard.this, aws_sns_topic.this, aws_cloudwatch_event_rule.endpoint_state,
    ] : length(resources)]) == 0
    error_message = "create = false creates nothing, whatever else is asked for."
  }
  assert {
    condition     = output.endpoint_name == null && output.bucket == null && output.model_prefix_uri == null && output.role_arn == null && output.invoke_policy_json == null && output.publisher_policy_json == null && length(output.model_names) == 0
    error_message = "The outputs are there, and empty."
  }
}

run "nothing_at_all_with_what_exists" {
  command = plan

  variables {
    create = false
    bucket = { create = false, name = "theirs" }
    role   = { create = false, arn = "arn:aws:iam::123456789012:role/theirs" }
  }

  assert {
    condition     = output.bucket == null && output.role_arn == null
    error_message = "The outputs are null with an existing bucket and role too."
  }
}
