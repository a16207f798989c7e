# The bucket: safe as it is made, or one that exists.
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

run "safe_by_default" {
  command = plan

  assert {
    condition     = aws_s3_bucket_public_access_block.this[0].block_public_acls && aws_s3_bucket_public_access_block.this[0].block_public_policy && aws_s3_bucket_public_access_block.this[0].ignore_public_acls && aws_s3_bucket_public_access_block.this[0].restrict_public_buckets
    error_message = "Nothing is public."
  }
  assert {
    condition     = one(aws_s3_bucket_ownership_controls.this[0].rule).object_ownership == "BucketOwnerEnforced"
    error_message = "No ACLs."
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "Encrypted."
  }
  assert {
    condition     = one(aws_s3_bucket_versioning.this[0].versioning_configuration).status == "Enabled"
    error_message = "Versioned."
  }
  assert {
    condition     = aws_s3_bucket.this[0].force_destroy == false
    error_message = "Archives survive a destroy."
  }
  assert {
    condition = one(jsondecode(data.aws_iam_policy_document.bucket[0].json).Statement) == {
      Sid       = "DenyPlainHttp"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = ["arn:aws:s3:::unit-123456789012-us-east-1/*", "arn:aws:s3:::unit-123456789012-us-east-1"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }
    error_message = "TLS only."
  }
  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.this[0].rule[*].id == tolist(["abort-incomplete-uploads", "expire-old-versions"])
    error_message = "Old versions and unfinished uploads are cleared away."
  }
  assert {
    condition     = aws_s3_object.prefix[0].key == "models/"
    error_message = "The prefix is there before the model."
  }
}

run "more_of_it" {
  command = plan

  variables {
    model_prefix = "production/models/"
    bucket = {
      name                               = "given-name"
      kms_key_arn                        = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
      deny_overwrite                     = true
      access_log                         = { bucket = "logs", prefix = "s3/" }
      noncurrent_version_expiration_days = 0
      policy_json                        = jsonencode({ Version = "2012-10-17", Statement = [{ Sid = "Mine", Effect = "Deny", Principal = "*", Action = "s3:PutBucketAcl", Resource = "arn:aws:s3:::given-name" }] })
    }
  }

  assert {
    condition     = aws_s3_bucket.this[0].bucket == "given-name" && output.model_prefix_uri == "s3://given-name/production/models/"
    error_message = "Name and prefix are the given ones."
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).apply_server_side_encryption_by_default).sse_algorithm == "aws:kms" && one(aws_s3_bucket_server_side_encryption_configuration.this[0].rule).bucket_key_enabled
    error_message = "KMS with a bucket key."
  }
  assert {
    condition     = jsondecode(data.aws_iam_policy_document.bucket[0].json).Statement[*].Sid == ["Mine", "DenyPlainHttp", "DenyReplacingArchives"]
    error_message = "The caller's statements stand beside the module's."
  }
  assert {
    condition     = jsondecode(data.aws_iam_policy_document.bucket[0].json).Statement[2].Resource == "arn:aws:s3:::given-name/production/models/*.tar.gz"
    error_message = "Archives cannot be replaced; channels, which have to move, can."
  }
  assert {
    condition     = aws_s3_bucket_logging.this[0].target_bucket == "logs" && aws_s3_bucket_logging.this[0].target_prefix == "s3/"
    error_message = "Access logs go where they are sent."
  }
  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.this[0].rule[*].id == tolist(["abort-incomplete-uploads"])
    error_message = "0 keeps old versions for ever."
  }
}

run "no_lifecycle" {
  command = plan

  variables {
    bucket = { noncurrent_version_expiration_days = 0, abort_incomplete_upload_days = 0, versioning_enabled = false, prefix_marker = false }
  }

  assert {
    condition     = length(aws_s3_bucket_lifecycle_configuration.this) == 0 && one(aws_s3_bucket_versioning.this[0].versioning_configuration).status == "Suspended" && length(aws_s3_object.prefix) == 0
    error_message = "Lifecycle, versioning and marker can be turned off."
  }
}

run "existing" {
  command = plan

  variables {
    bucket = { create = false, name = "theirs", kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555" }
  }

  assert {
    condition     = length(aws_s3_bucket.this) + length(aws_s3_bucket_policy.this) + length(aws_s3_bucket_versioning.this) + length(aws_s3_object.prefix) == 0
    error_message = "Nothing about an existing bucket is touched."
  }
  assert {
    condition     = output.bucket == "theirs" && output.bucket_arn == "arn:aws:s3:::theirs" && one(aws_sagemaker_model.this["primary"].primary_container).model_data_url == "s3://theirs/models/"
    error_message = "The endpoint reads from the existing bucket."
  }
  assert {
    condition     = contains([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Sid], "DecryptModels")
    error_message = "The role may use the existing bucket's key."
  }
}

run "existing_with_marker" {
  command = plan

  variables {
    bucket = { create = false, name = "theirs", prefix_marker = true }
  }

  assert {
    condition     = aws_s3_object.prefix[0].bucket == "theirs"
    error_message = "The marker can be put into an existing bucket."
  }
}

run "refuses_an_existing_bucket_without_a_name" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    bucket = { create = false }
  }

  expect_failures = [var.bucket]
}

run "refuses_a_uri_for_a_name" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    bucket = { name = "s3://mine" }
  }

  expect_failures = [var.bucket]
}

run "refuses_a_key_by_alias" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    bucket = { kms_key_arn = "alias/mine" }
  }

  expect_failures = [var.bucket]
}

run "refuses_negative_days" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    bucket = { abort_incomplete_upload_days = -1 }
  }

  expect_failures = [var.bucket]
}

run "refuses_changing_an_existing_bucket" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    bucket = { create = false, name = "theirs", deny_overwrite = true }
  }

  expect_failures = [var.bucket]
}

run "refuses_a_prefix_without_a_slash" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    model_prefix = "models"
  }

  expect_failures = [var.model_prefix]
}

run "refuses_a_prefix_with_a_slash_before" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    model_prefix = "/models/"
  }

  expect_failures = [var.model_prefix]
}

run "refuses_the_prefix_of_the_channels" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    model_prefix = "production/channels/"
  }

  expect_failures = [var.model_prefix]
}
