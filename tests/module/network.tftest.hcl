# VPC, volume key, network isolation, data capture.
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

run "vpc_and_keys" {
  command = plan

  variables {
    vpc                = { subnet_ids = ["subnet-1", "subnet-2"], security_group_ids = ["sg-1"] }
    volume_kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    network_isolation  = false
    logs               = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/22222222-2222-3333-4444-555555555555" }
  }

  assert {
    condition     = one(aws_sagemaker_model.this["primary"].vpc_config).subnets == toset(["subnet-1", "subnet-2"]) && one(aws_sagemaker_model.this["primary"].vpc_config).security_group_ids == toset(["sg-1"])
    error_message = "The instances are in the VPC."
  }
  assert {
    condition     = aws_sagemaker_model.this["primary"].enable_network_isolation == false
    error_message = "Isolation can be turned off."
  }
  assert {
    condition     = aws_sagemaker_endpoint_configuration.this[0].kms_key_arn == var.volume_kms_key_arn && aws_cloudwatch_log_group.this[0].kms_key_id == var.logs.kms_key_arn
    error_message = "Volumes and logs are encrypted with the keys."
  }
  assert {
    condition = one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Resource if statement.Sid == "CreateNetworkInterfaces"]) == [
      "arn:aws:ec2:us-east-1:123456789012:subnet/subnet-2",
      "arn:aws:ec2:us-east-1:123456789012:subnet/subnet-1",
      "arn:aws:ec2:us-east-1:123456789012:security-group/sg-1",
      "arn:aws:ec2:us-east-1:123456789012:network-interface/*",
    ]
    error_message = "The role makes network interfaces in these subnets only."
  }
  assert {
    condition     = one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Condition if statement.Sid == "EncryptVolumes"]) == { Bool = { "kms:GrantIsForAWSResource" = "true" } }
    error_message = "The role hands the key on to AWS's own services only."
  }
}

run "data_capture" {
  command = plan

  variables {
    data_capture = { sampling_percentage = 20, destination_uri = "s3://captures/here", modes = ["Input"], kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555" }
  }

  assert {
    condition     = one(aws_sagemaker_endpoint_configuration.this[0].data_capture_config).destination_s3_uri == "s3://captures/here" && one(one(aws_sagemaker_endpoint_configuration.this[0].data_capture_config).capture_options).capture_mode == "Input" && one(aws_sagemaker_endpoint_configuration.this[0].data_capture_config).initial_sampling_percentage == 20
    error_message = "Capture is passed on."
  }
  assert {
    condition     = one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Resource if statement.Sid == "CaptureData"]) == "arn:aws:s3:::captures/here/*"
    error_message = "The role may write there and nowhere else."
  }
  assert {
    condition     = contains([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Sid], "EncryptCapturedData")
    error_message = "The role may encrypt what is captured."
  }
  assert {
    condition     = one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Condition if statement.Sid == "EncryptCapturedData"]) == { StringEquals = { "kms:ViaService" = "s3.us-east-1.amazonaws.com" } }
    error_message = "The key is for S3 alone."
  }
}

run "core_dumps_come_in_parts" {
  command = plan

  variables {
    variants = { primary = { core_dump = { destination_uri = "s3://cores/here", kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555" } } }
  }

  assert {
    condition = one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement if statement.Sid == "EncryptCoreDumps"]) == {
      Sid       = "EncryptCoreDumps"
      Effect    = "Allow"
      Action    = ["kms:GenerateDataKey", "kms:Decrypt"]
      Resource  = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
      Condition = { StringEquals = { "kms:ViaService" = "s3.us-east-1.amazonaws.com" } }
    }
    error_message = "S3 asks for both of whoever uploads in parts, and the key is for S3 alone."
  }
}

run "data_capture_into_the_bucket" {
  command = plan

  variables {
    data_capture = {}
    bucket       = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555" }
    variants     = { primary = { core_dump = { destination_uri = "s3://cores/here" } } }
  }

  assert {
    condition     = one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Action if statement.Sid == "EncryptIntoBucket"]) == "kms:GenerateDataKey"
    error_message = "What is captured into the bucket is encrypted with the bucket's key, so the role may use it."
  }
  assert {
    condition     = one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Resource if statement.Sid == "DumpCores"]) == "arn:aws:s3:::cores/here/*"
    error_message = "The role may write core dumps there and nowhere else."
  }
}

run "refuses_capturing_below_the_prefix" {
  command = plan

  variables {
    data_capture = { destination_uri = "s3://unit-123456789012-us-east-1/models/captured" }
  }

  expect_failures = [aws_sagemaker_endpoint_configuration.this]
}

run "refuses_keys_of_another_region" {
  command = plan

  variables {
    volume_kms_key_arn = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"
  }

  expect_failures = [aws_sagemaker_endpoint_configuration.this]
}

run "refuses_one_subnet" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    vpc = { subnet_ids = ["subnet-1"], security_group_ids = ["sg-1"] }
  }

  expect_failures = [var.vpc]
}

run "refuses_one_subnet_twice" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    vpc = { subnet_ids = ["subnet-1", "subnet-1"], security_group_ids = ["sg-1"] }
  }

  expect_failures = [var.vpc]
}

run "refuses_no_security_group" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    vpc = { subnet_ids = ["subnet-1", "subnet-2"], security_group_ids = [] }
  }

  expect_failures = [var.vpc]
}

run "refuses_a_volume_key_by_alias" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    volume_kms_key_arn = "alias/mine"
  }

  expect_failures = [var.volume_kms_key_arn]
}

run "refuses_a_volume_key_on_local_disks" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    volume_kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    variants           = { primary = { instance_type = "ml.g5.xlarge" } }
  }

  expect_failures = [var.volume_kms_key_arn]
}

run "refuses_capturing_nothing" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    data_capture = { sampling_percentage = 0 }
  }

  expect_failures = [var.data_capture]
}

run "refuses_capturing_to_a_bucket_name" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    data_capture = { destination_uri = "captures" }
  }

  expect_failures = [var.data_capture]
}

run "refuses_unknown_capture_modes" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    data_capture = { modes = ["Both"] }
  }

  expect_failures = [var.data_capture]
}
