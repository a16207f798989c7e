# Region and credentials come from the environment.
provider "aws" {}

resource "aws_ecr_repository" "this" {
  # checkov:skip=CKV_AWS_136:ECR encrypts by itself; a key of one's own is a choice
  name                 = var.name
  image_tag_mutability = "IMMUTABLE"
  force_delete         = true # an example is there to be taken down again

  image_scanning_configuration {
    scan_on_push = true
  }
}

module "endpoint" {
  source = "../.."

  name = var.name

  image_uri   = "${aws_ecr_repository.this.repository_url}:${var.image_tag}"
  environment = var.environment
  revision    = var.revision

  bucket = {
    # An example is there to be taken down again.
    force_destroy                      = true
    noncurrent_version_expiration_days = 0
    abort_incomplete_upload_days       = 0
  }
}
