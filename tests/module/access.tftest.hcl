# Who may do what: the execution role, those who call, those who publish.
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

run "execution_role" {
  command = plan

  assert {
    condition     = jsondecode(data.aws_iam_policy_document.execution[0].json).Statement[*].Sid == ["ReadModels", "ListModels", "LogInToRegistry", "PullImages", "WriteLogs", "PutMetrics"]
    error_message = "Nothing but what hosting needs."
  }
  assert {
    condition     = jsondecode(data.aws_iam_policy_document.execution[0].json).Statement[0].Resource == "arn:aws:s3:::unit-123456789012-us-east-1/models/*" && jsondecode(data.aws_iam_policy_document.execution[0].json).Statement[0].Action == "s3:GetObject"
    error_message = "It reads the prefix and nothing else."
  }
  assert {
    condition     = jsondecode(data.aws_iam_policy_document.execution[0].json).Statement[1].Condition == { StringLike = { "s3:prefix" = "models/*" } }
    error_message = "It lists the prefix and nothing else."
  }
  assert {
    condition     = [for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Sid if statement.Resource == "*"] == ["LogInToRegistry", "PutMetrics"]
    error_message = "Only actions that know no resource are allowed on all."
  }
  assert {
    condition     = jsondecode(data.aws_iam_policy_document.execution[0].json).Statement[3].Resource == "arn:aws:ecr:us-east-1:763104351884:repository/huggingface-pytorch-inference"
    error_message = "It pulls from the one repository."
  }
  assert {
    condition     = one(jsondecode(data.aws_iam_policy_document.assume_role[0].json).Statement).Condition == { StringEquals = { "aws:SourceAccount" = "123456789012" } }
    error_message = "SageMaker acts in the role for this account only."
  }
}

run "role_settings" {
  command = plan

  variables {
    role = {
      name                     = "given"
      path                     = "/ml/"
      permissions_boundary_arn = "arn:aws:iam::123456789012:policy/boundary"
      policy_arns              = { extra = "arn:aws:iam::123456789012:policy/extra" }
    }
    invoke_policies = { all = ["*"] }
  }

  assert {
    condition     = aws_iam_role.this[0].name == "given" && aws_iam_role.this[0].path == "/ml/" && aws_iam_role.this[0].permissions_boundary == "arn:aws:iam::123456789012:policy/boundary" && aws_iam_role_policy_attachment.this["extra"].policy_arn == "arn:aws:iam::123456789012:policy/extra"
    error_message = "Name, path, boundary and further policies are passed on."
  }
  assert {
    condition     = aws_iam_policy.invoke["all"].path == "/ml/"
    error_message = "Policies lie where the role lies."
  }
}

run "existing_role" {
  command = plan

  variables {
    role = { create = false, arn = "arn:aws:iam::123456789012:role/theirs" }
  }

  assert {
    condition     = length(aws_iam_role.this) + length(aws_iam_role_policy.this) == 0 && aws_sagemaker_model.this["primary"].execution_role_arn == "arn:aws:iam::123456789012:role/theirs"
    error_message = "An existing role is used as it is."
  }
}

run "callers" {
  command = plan

  variables {
    invoke_policies = { team-a = ["team-a/*"], both = ["team-a/*", "team-b/*"] }
  }

  assert {
    condition     = aws_iam_policy.invoke["team-a"].name == "unit-us-east-1-invoke-team-a"
    error_message = "Policies are global, so their names hold the region."
  }
  assert {
    condition = one(jsondecode(aws_iam_policy.invoke["team-a"].policy).Statement) == {
      Sid       = "InvokeTheseModels"
      Effect    = "Allow"
      Action    = "sagemaker:InvokeEndpoint"
      Resource  = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/unit"
      Condition = { StringLike = { "sagemaker:TargetModel" = "team-a/*" } }
    }
    error_message = "One endpoint, one folder of models."
  }
  assert {
    condition     = toset(one(jsondecode(aws_iam_policy.invoke["both"].policy).Statement).Condition.StringLike["sagemaker:TargetModel"]) == toset(["team-a/*", "team-b/*"])
    error_message = "Several patterns."
  }
  assert {
    condition     = !strcontains(output.invoke_policy_json, "Condition") && strcontains(output.invoke_policy_json, "arn:aws:sagemaker:us-east-1:123456789012:endpoint/unit")
    error_message = "The policy for everything is for this endpoint."
  }
}

run "callers_by_name" {
  command = plan

  variables {
    bucket = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555" }
  }

  assert {
    condition = flatten([for statement in jsondecode(output.client_policy_json).Statement : statement.Action]) == [
      "sagemaker:DescribeEndpoint", "sagemaker:DescribeEndpointConfig", "sagemaker:DescribeModel", "s3:ListBucket", "s3:GetObject", "kms:Decrypt", "sagemaker:InvokeEndpoint",
    ]
    error_message = "A caller by name looks names up and calls."
  }
  assert {
    condition     = [for statement in jsondecode(output.client_policy_json).Statement : statement.Resource if statement.Sid == "ReadChannels"] == ["arn:aws:s3:::unit-123456789012-us-east-1/channels/*"]
    error_message = "It reads channels, and no archives."
  }
  assert {
    condition     = !strcontains(output.lookup_policy_json, "InvokeEndpoint") && jsondecode(output.lookup_policy_json).Statement == slice(jsondecode(output.client_policy_json).Statement, 0, 6)
    error_message = "A tenant's policy says itself what may be called."
  }
  assert {
    condition     = [for policy in [output.client_policy_json, output.lookup_policy_json] : policy if strcontains(policy, "\"Resource\": \"*\"")] == []
    error_message = "Nothing is allowed on everything."
  }
}

run "operators" {
  command = plan

  variables {
    role = { path = "/ml/" }
  }

  assert {
    condition     = [for statement in jsondecode(output.operator_policy_json).Statement : statement.Sid if statement.Resource == "*"] == ["ReadMetricsAndScaling"]
    error_message = "Only actions that know no resource are allowed on all."
  }
  assert {
    condition     = [for statement in jsondecode(output.operator_policy_json).Statement : statement.Resource if statement.Sid == "ReadRole"] == ["arn:aws:iam::123456789012:role/ml/${aws_iam_role.this[0].name}"]
    error_message = "The role is known at plan time."
  }
  assert {
    condition     = [for statement in jsondecode(output.operator_policy_json).Statement : statement.Resource if contains(flatten([statement.Action]), "s3:PutObject")] == ["arn:aws:s3:::unit-123456789012-us-east-1/channels/*.json", "arn:aws:s3:::unit-123456789012-us-east-1/plans/*.json"]
    error_message = "It moves channels and keeps capacity plans, and publishes no archive."
  }
  assert {
    condition     = [for statement in jsondecode(output.operator_policy_json).Statement : statement.Condition if statement.Sid == "ListPlans"] == [{ StringLike = { "s3:prefix" = "plans/*" } }]
    error_message = "It lists capacity plans, to show them."
  }
  assert {
    condition     = length(output.operator_policy_json) <= 6144
    error_message = "It fits into a managed policy as it is."
  }
}

run "publishers" {
  command = plan

  variables {
    create_publisher_policy = true
    bucket                  = { kms_key_arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555" }
  }

  assert {
    condition     = jsondecode(aws_iam_policy.publisher[0].policy) == jsondecode(output.publisher_policy_json)
    error_message = "The policy is that of the output."
  }
  assert {
    condition     = [for statement in jsondecode(output.publisher_policy_json).Statement : statement.Sid if statement.Effect == "Deny"] == ["NeverReplaceArchives", "NeverDeleteArchives"]
    error_message = "Replacing and deleting are denied, whatever else the bearer may do."
  }
  assert {
    condition     = [for statement in jsondecode(output.publisher_policy_json).Statement : statement.Condition if statement.Sid == "PutNewArchives"] == [{ Null = { "s3:if-none-match" = "false" } }]
    error_message = "An archive is written only where there is none."
  }
  assert {
    condition     = [for statement in jsondecode(output.publisher_policy_json).Statement : statement.Resource if statement.Sid == "MoveChannels"] == ["arn:aws:s3:::unit-123456789012-us-east-1/channels/*.json"]
    error_message = "Channels lie beside the prefix."
  }
  assert {
    condition     = [for statement in jsondecode(output.publisher_policy_json).Statement : statement if statement.Sid == "PutPlans"] == [{ Sid = "PutPlans", Effect = "Allow", Action = "s3:PutObject", Resource = "arn:aws:s3:::unit-123456789012-us-east-1/plans/*.json" }]
    error_message = "Capacity plans lie beside the prefix, and whoever publishes may put one."
  }
  assert {
    condition     = contains([for statement in jsondecode(output.publisher_policy_json).Statement : statement.Sid], "UseBucketKey")
    error_message = "It may encrypt with the bucket's key."
  }
}

run "channels_of_a_deep_prefix" {
  command = plan

  variables {
    model_prefix = "production/search/models/"
    data_capture = {}
  }

  assert {
    condition     = [for statement in jsondecode(output.publisher_policy_json).Statement : statement.Resource if statement.Sid == "MoveChannels"] == ["arn:aws:s3:::unit-123456789012-us-east-1/production/search/channels/*.json"]
    error_message = "Channels lie in the folder that the prefix lies in."
  }
  assert {
    condition     = [for statement in jsondecode(output.operator_policy_json).Statement : statement.Resource if statement.Sid == "KeepPlans"] == ["arn:aws:s3:::unit-123456789012-us-east-1/production/search/plans/*.json"]
    error_message = "So do capacity plans."
  }
  assert {
    condition     = one(aws_sagemaker_endpoint_configuration.this[0].data_capture_config).destination_s3_uri == "s3://unit-123456789012-us-east-1/production/search/data-capture/"
    error_message = "So does what is captured."
  }
}

run "refuses_an_existing_role_without_an_arn" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    role = { create = false }
  }

  expect_failures = [var.role]
}

run "refuses_an_arn_for_a_new_role" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    role = { arn = "arn:aws:iam::123456789012:role/theirs" }
  }

  expect_failures = [var.role]
}

run "refuses_a_role_by_name" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    role = { create = false, arn = "theirs" }
  }

  expect_failures = [var.role]
}

run "refuses_a_long_role_name" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    role = { name = join("", [for n in range(65) : "r"]) }
  }

  expect_failures = [var.role]
}

run "refuses_a_path_without_slashes" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    role = { path = "ml" }
  }

  expect_failures = [var.role]
}

run "refuses_changing_an_existing_role" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    role = { create = false, arn = "arn:aws:iam::123456789012:role/theirs", permissions_boundary_arn = "arn:aws:iam::123456789012:policy/b" }
  }

  expect_failures = [var.role]
}

run "refuses_odd_policy_names" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    invoke_policies = { "team/a" = ["team-a/*"] }
  }

  expect_failures = [var.invoke_policies]
}

run "refuses_a_policy_for_nothing" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    invoke_policies = { team-a = [] }
  }

  expect_failures = [var.invoke_policies]
}

run "refuses_uris_for_patterns" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    invoke_policies = { team-a = ["s3://bucket/models/team-a/*"] }
  }

  expect_failures = [var.invoke_policies]
}

run "a_policy_that_iam_would_not_take" {
  command = plan

  variables {
    role            = { policy_json = jsonencode({ Statement = [{ Sid = "Mine", Effect = "Allow", Action = "s3:GetObject", Resource = [for n in range(200) : "arn:aws:s3:::a-bucket-with-a-long-name/${n}/some/where/below/*"] }] }) }
    bucket          = { policy_json = jsonencode({ Statement = [{ Sid = "Mine", Effect = "Deny", Principal = "*", Action = "s3:GetObject", Resource = [for n in range(400) : "arn:aws:s3:::a-bucket-with-a-long-name/${n}/some/where/below/*"] }] }) }
    invoke_policies = { few = ["team-a/*"], many = [for n in range(300) : "team-with-a-long-name-${n}/*"] }
  }

  expect_failures = [
    aws_iam_role_policy.this[0],
    aws_iam_policy.invoke["many"],
    aws_s3_bucket_policy.this[0],
  ]
}

run "refuses_a_publisher_policy_that_is_too_long" {
  command = plan

  variables {
    create_publisher_policy = true
    model_prefix            = "${join("", [for n in range(250) : "a"])}/${join("", [for n in range(250) : "b"])}/"
  }

  expect_failures = [aws_iam_policy.publisher]
}
