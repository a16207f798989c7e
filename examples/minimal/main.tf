terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }
}

# Region and credentials come from the environment.
provider "aws" {}

module "endpoint" {
  source = "../.."

  name = var.name

  variants = {
    primary = { instance_type = "ml.m5.xlarge" }
  }

  bucket = {
    # An example is there to be taken down again. In production leave this out: with archives in it, the bucket then
    # survives `terraform destroy`.
    force_destroy = true
  }
}
