#!/usr/bin/env bash
# programs.sh: builds what a few tests need on a cluster besides Katib, from Go modules, once: Kubeflow Trainer with JobSet,
# and kube-router, which enforces network policies. Needs Go and buildah; a registry of images is not asked.
#
# Makes, in ~/.cache/retune/e2e: images/*.tar for the nodes (`kind load image-archive`), manifests/*.yaml for kubectl, and
# bin/kube-router, a program for the node itself. It enforces by iptables and ipset; kube-network-policies needs nftables' `queue`,
# which not every kernel has.
set -euo pipefail
TRAINER=2.0.0 JOBSET=0.8.2 ROUTER=2.1.0
home=${XDG_CACHE_HOME:-$HOME/.cache}/retune/e2e
kubectl=${KUBECTL:-$(command -v kubectl || echo "${CLUSTER_HOME:-$HOME/.cache/cluster}/bin/kubectl")}
export CGO_ENABLED=0 GOFLAGS=-mod=mod
mkdir -p "$home"/{go,bin,images,manifests}
buildah() { command buildah --root "$home/buildah" --runroot /run/retune-e2e --storage-driver overlay "$@"; }

# module MODULE VERSION: a module of our own in which the other can be built; sets `source`, the folder of its files
module() {
  cd "$home/go"; rm -f go.mod go.sum
  printf '%s\n' 'module retune/e2e' 'go 1.24' "require $1 v$2" > go.mod
  source=$(go mod download -json "$1@v$2" | sed -n 's/.*"Dir": "\(.*\)",*$/\1/p')
}

# image NAME MODULE VERSION PACKAGE PLACE: a Go program of a module, as an image of that program alone
image() {
  local archive; archive=$home/images/$(tr '/:' '__' <<< "$1").tar
  module "$2" "$3"
  [ -e "$archive" ] && return
  echo "building $1"
  go build -trimpath -ldflags '-s -w' -o "$home/bin/program" "$4"
  local made; made=$(buildah from scratch)
  buildah copy --quiet "$made" "$home/bin/program" "$5" > /dev/null
  buildah config --user 65532:65532 --entrypoint "[\"$5\"]" "$made"
  buildah commit --quiet --rm "$made" "$1" > /dev/null
  buildah push --quiet "$1" "docker-archive:$archive.new:$1"
  mv "$archive.new" "$archive"
}

if ! [ -e "$home/bin/kube-router" ]; then
  module github.com/cloudnativelabs/kube-router/v2 $ROUTER
  echo "building kube-router"
  go build -trimpath -ldflags '-s -w' -o "$home/bin/kube-router" github.com/cloudnativelabs/kube-router/v2/cmd/kube-router
fi

image registry.k8s.io/jobset/jobset:v$JOBSET sigs.k8s.io/jobset $JOBSET sigs.k8s.io/jobset /manager
work=$home/work; rm -rf "$work"; mkdir "$work"
cp -r "$source/config" "$work/jobset"; chmod -R u+w "$work/jobset"
printf '%s\n' 'resources: [jobset/default]' 'images:' \
  "- {name: controller, newName: registry.k8s.io/jobset/jobset, newTag: v$JOBSET}" \
  "- {name: us-central1-docker.pkg.dev/k8s-staging-images/jobset/jobset, newName: registry.k8s.io/jobset/jobset, newTag: v$JOBSET}" > "$work/kustomization.yaml"
"$kubectl" kustomize "$work" 2> /dev/null | sed 's/imagePullPolicy: Always/imagePullPolicy: IfNotPresent/' > "$home/manifests/jobset.yaml"

image ghcr.io/kubeflow/trainer/trainer-controller-manager:v$TRAINER github.com/kubeflow/trainer/v2 $TRAINER \
  github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager /manager
cp -r "$source/manifests" "$work/trainer"; chmod -R u+w "$work/trainer"
sed -i '/third-party/d' "$work/trainer/overlays/manager/kustomization.yaml"
"$kubectl" kustomize "$work/trainer/overlays/manager" > "$home/manifests/trainer.yaml"
rm -rf "$work"
