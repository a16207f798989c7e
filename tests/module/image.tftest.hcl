# Images: the Hugging Face DLC by version and device, or one of your own.
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

run "cpu" {
  command = plan

  assert {
    condition     = output.image_uris["primary"] == "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-inference:2.6.0-transformers5.5.3-cpu-py312-ubuntu22.04"
    error_message = "A CPU type gets the CPU image."
  }
}

run "gpu_and_older" {
  command = plan

  variables {
    variants    = { primary = { instance_type = "ml.g5.xlarge" } }
    huggingface = { transformers_version = "4.51.3" }
  }

  assert {
    condition     = endswith(output.image_uris["primary"], ":2.6.0-transformers4.51.3-gpu-py312-cu124-ubuntu22.04")
    error_message = "A GPU type gets the GPU image, of the version asked for."
  }
}

run "own" {
  command = plan

  variables {
    image_uri = "210987654321.dkr.ecr.us-east-1.amazonaws.com/ml/mme:1.2.3"
    variants = {
      a = {}
      b = { image_uri = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mme@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
      c = { instance_type = "ml.c7g.xlarge" } # Arm, with an image that is taken to be for it
    }
  }

  assert {
    condition     = output.image_uris["a"] == var.image_uri && output.image_uris["b"] != var.image_uri
    error_message = "A variant's own image goes before the module's, and neither needs AWS's registry."
  }
  assert {
    condition = toset(one([for statement in jsondecode(data.aws_iam_policy_document.execution[0].json).Statement : statement.Resource if try(statement.Sid, "") == "PullImages"])) == toset([
      "arn:aws:ecr:us-east-1:210987654321:repository/ml/mme", "arn:aws:ecr:us-east-1:123456789012:repository/mme",
    ])
    error_message = "The role may pull from these two repositories and no other."
  }
}

run "refuses_another_region" {
  command = plan

  variables {
    image_uri = "210987654321.dkr.ecr.eu-west-1.amazonaws.com/ml/mme:1.2.3"
  }

  expect_failures = [aws_sagemaker_model.this]
}

run "own_in_a_region_that_the_provider_does_not_know" {
  command = plan

  override_data {
    target = data.aws_region.current
    values = { id = "ap-southeast-5" }
  }

  variables {
    image_uri = "123456789012.dkr.ecr.ap-southeast-5.amazonaws.com/mme:1"
  }

  assert {
    condition     = output.image_uris["primary"] == var.image_uri
    error_message = "An image of one's own does without the provider's list of registries."
  }
}

run "refuses_other_registries" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    image_uri = "docker.io/library/python:3.12"
  }

  expect_failures = [var.image_uri]
}

run "refuses_other_registries_in_variants" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { image_uri = "ghcr.io/me/mme:1" } }
  }

  expect_failures = [var.variants]
}

run "refuses_gpu_image_on_cpu" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { image_uri = "763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-pytorch-inference:2.6.0-transformers5.5.3-gpu-py312-cu124-ubuntu22.04" } }
  }

  expect_failures = [var.variants]
}

run "refuses_x86_image_on_arm" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { instance_type = "ml.m6gd.xlarge" } }
  }

  expect_failures = [var.variants]
}

run "refuses_part_of_a_version" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    huggingface = { transformers_version = "4.51" }
  }

  expect_failures = [var.huggingface]
}

run "refuses_a_plain_python_version" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    huggingface = { python_version = "3.12" }
  }

  expect_failures = [var.huggingface]
}

run "refuses_odd_environment_names" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    environment = { "MY-VARIABLE" = "1" }
  }

  expect_failures = [var.environment]
}
