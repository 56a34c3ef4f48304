package main

import (
	"reflect"
	"testing"

	"holdfast/hack/debian"
)

const metas = `Package: linux-image-amd64
Version: 7.2.13-1
Depends: linux-base-amd64 (= 7.2.13-1), linux-image-7.2.13+deb14-amd64 (= 7.2.13-1)

Package: linux-image-amd64
Version: 7.2.12-1~bpo13+1
Depends: linux-base-amd64 (= 7.2.12-1~bpo13+1), linux-image-7.2.12+deb13-amd64 (= 7.2.12-1~bpo13+1)

Package: linux-image-amd64
Version: 6.12.95-1~bpo12+1
Depends: linux-image-6.12.95+deb12-amd64 (= 6.12.95-1~bpo12+1)

Package: linux-image-amd64
Version: 6.12.107-1
Depends: linux-image-6.12.107+deb13-amd64 (= 6.12.107-1)
`

func TestPickImage(t *testing.T) {
	stanzas := debian.Stanzas(metas)
	for series, want := range map[string][2]string{
		"7.2":  {"linux-image-7.2.13+deb14-amd64", "7.2.13-1"},
		"6.12": {"linux-image-6.12.107+deb13-amd64", "6.12.107-1"},
		"6.1":  {"", ""},
	} {
		if image, version := pickImage(stanzas, series); image != want[0] || version != want[1] {
			t.Errorf("%s: got %s %s, want %v", series, image, version, want)
		}
	}
}

func TestVersionedImages(t *testing.T) {
	got := versionedImages(`linux-image-6.12.95+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.95+deb12-amd64-unsigned - Linux 6.12 for 64-bit PCs
linux-image-6.12.95+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.95+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs, PREEMPT_RT (signed)
linux-image-6.12.95+deb12-amd64-dbg - Debug symbols
linux-image-6.1.0-44-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.120.1+deb12-amd64 - of another series
linux-image-6.12.0-3-amd64 - Linux 6.12 in the old naming
`, "6.12")
	want := []string{"linux-image-6.12.95+deb12-amd64", "linux-image-6.12.0-3-amd64"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestKernelPackages(t *testing.T) {
	p := kernelPackages("linux-image-7.2.13+deb14-amd64", "7.2.13-1",
		"dracut | initramfs-tools (>= 0.120) | linux-initramfs-tool, linux-base-7.2.13+deb14-amd64 (= 7.2.13-1), linux-binary-7.2.13+deb14-amd64 (= 7.2.13-1), linux-modules-7.2.13+deb14-amd64 (= 7.2.13-1)")
	want := &packages{
		release: "7.2.13+deb14-amd64", version: "7.2.13-1",
		names: []string{
			"linux-image-7.2.13+deb14-amd64", "linux-base-7.2.13+deb14-amd64",
			"linux-binary-7.2.13+deb14-amd64", "linux-modules-7.2.13+deb14-amd64",
		},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got %+v, want %+v", p, want)
	}
}
