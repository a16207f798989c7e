# Variants: several kinds of machine behind one endpoint.
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

run "two" {
  command = plan

  variables {
    environment = { A = "module", B = "module" }
    variants = {
      base = { instance_count = 2, weight = 3 }
      test = {
        instance_type            = "ml.g4dn.xlarge"
        environment              = { B = "variant" }
        download_timeout_seconds = 900
        startup_timeout_seconds  = 600
        routing_strategy         = "LEAST_OUTSTANDING_REQUESTS"
        inference_ami_version    = "al2-ami-sagemaker-inference-gpu-2"
        enable_ssm_access        = true
      }
    }
  }

  assert {
    condition     = aws_sagemaker_endpoint_configuration.this[0].production_variants[*].variant_name == tolist(["base", "test"])
    error_message = "Each entry is a variant, in the order of their names."
  }
  assert {
    condition     = aws_sagemaker_endpoint_configuration.this[0].production_variants[0].initial_instance_count == 2 && aws_sagemaker_endpoint_configuration.this[0].production_variants[0].initial_variant_weight == 3
    error_message = "Count and weight are the variant's."
  }
  assert {
    condition     = output.model_names["base"] != output.model_names["test"] && aws_sagemaker_endpoint_configuration.this[0].production_variants[1].model_name == output.model_names["test"]
    error_message = "Each variant has a model of its own, for its own image and environment."
  }
  assert {
    condition     = one(aws_sagemaker_model.this["test"].primary_container).environment == tomap({ A = "module", B = "variant" })
    error_message = "A variant's variables go on top of the module's."
  }
  assert {
    condition     = one(aws_sagemaker_model.this["base"].primary_container).model_data_url == one(aws_sagemaker_model.this["test"].primary_container).model_data_url
    error_message = "All variants serve the same models."
  }
  assert {
    condition = (
      aws_sagemaker_endpoint_configuration.this[0].production_variants[1].model_data_download_timeout_in_seconds == 900
      && aws_sagemaker_endpoint_configuration.this[0].production_variants[1].container_startup_health_check_timeout_in_seconds == 600
      && aws_sagemaker_endpoint_configuration.this[0].production_variants[1].enable_ssm_access
      && aws_sagemaker_endpoint_configuration.this[0].production_variants[1].inference_ami_version == "al2-ami-sagemaker-inference-gpu-2"
      && one(aws_sagemaker_endpoint_configuration.this[0].production_variants[1].routing_config).routing_strategy == "LEAST_OUTSTANDING_REQUESTS"
    )
    error_message = "The rest is passed on."
  }
}

run "weights_are_whole" {
  command = plan

  variables {
    variants = { a = { weight = 0.9 }, b = { weight = 0.1 }, c = { weight = 0 }, d = { weight = 0.125 } }
  }

  assert {
    condition     = aws_sagemaker_endpoint_configuration.this[0].production_variants[*].initial_variant_weight == tolist([900, 100, 0, 125])
    error_message = "AWS keeps weights in single precision, which holds whole numbers as they are."
  }
}

run "whole_weights_stay" {
  command = plan

  variables {
    variants = { a = { weight = 16777216 }, b = { weight = 1 } }
  }

  assert {
    condition     = aws_sagemaker_endpoint_configuration.this[0].production_variants[*].initial_variant_weight == tolist([16777216, 1])
    error_message = "Whole numbers are passed on."
  }
}

run "large_weights_are_brought_down" {
  command = plan

  variables {
    variants = { a = { weight = 100000000 }, b = { weight = 0.5 } }
  }

  assert {
    condition     = aws_sagemaker_endpoint_configuration.this[0].production_variants[*].initial_variant_weight == tolist([16777216, 1])
    error_message = "Nothing above 2^24, and what has a weight keeps one."
  }
}

run "volume_and_cache" {
  command = plan

  variables {
    model_cache_enabled = false
    variants            = { primary = { volume_size_gb = 128 } }
  }

  assert {
    condition     = one(aws_sagemaker_endpoint_configuration.this[0].production_variants).volume_size_in_gb == 128
    error_message = "The volume's size is passed on."
  }
  assert {
    condition     = one(one(aws_sagemaker_model.this["primary"].primary_container).multi_model_config).model_cache_setting == "Disabled"
    error_message = "The cache can be turned off."
  }
}

run "refuses_no_variant_at_all" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = {}
  }

  expect_failures = [var.variants]
}

run "refuses_eleven_variants" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants   = { for n in range(11) : "v${n}" => {} }
    deployment = { rollback_on = [] }
  }

  expect_failures = [var.variants]
}

run "refuses_bad_variant_names" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { "my_variant" = {} }
  }

  expect_failures = [var.variants]
}

run "refuses_instance_types_of_ec2" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { instance_type = "m5.xlarge" } }
  }

  expect_failures = [var.variants]
}

run "refuses_accelerators_that_cannot_host_many" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { instance_type = "ml.inf2.xlarge" } }
  }

  expect_failures = [var.variants]
}

run "refuses_no_instance" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { instance_count = 0 } }
  }

  expect_failures = [var.variants]
}

run "refuses_half_an_instance" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { instance_count = 1.5 } }
  }

  expect_failures = [var.variants]
}

run "refuses_negative_weights" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { a = { weight = -1 }, b = {} }
  }

  expect_failures = [var.variants]
}

run "refuses_weights_without_traffic" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { weight = 0 } }
  }

  expect_failures = [var.variants]
}

run "refuses_huge_volumes" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { volume_size_gb = 513 } }
  }

  expect_failures = [var.variants]
}

run "refuses_volumes_beside_local_disks" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { instance_type = "ml.g4dn.xlarge", volume_size_gb = 100 } }
  }

  expect_failures = [var.variants]
}

run "refuses_short_timeouts" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { download_timeout_seconds = 30 } }
  }

  expect_failures = [var.variants]
}

run "refuses_long_timeouts" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { startup_timeout_seconds = 3601 } }
  }

  expect_failures = [var.variants]
}

run "refuses_unknown_routing" {
  command = plan

  module {
    source = "./tests/module/inputs"
  }

  variables {
    variants = { primary = { routing_strategy = "STICKY" } }
  }

  expect_failures = [var.variants]
}
