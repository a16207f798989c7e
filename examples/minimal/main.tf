# Region and credentials come from the environment.
provider "aws" {}

module "endpoint" {
  source = "../.."

  name = var.name

  variants = {
    primary = { instance_type = var.instance_type }
  }

  bucket = {
    # An example is there to be taken down again. In production leave these three lines out: a bucket with archives in
    # it then survives `terraform destroy`, and old versions and unfinished uploads are cleared away.
    force_destroy                      = true
    noncurrent_version_expiration_days = 0
    abort_incomplete_upload_days       = 0
  }
}
