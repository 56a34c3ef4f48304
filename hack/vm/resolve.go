package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"holdfast/hack/debian"
)

// kernelSuites are the Debian suites searched for a series. Which of them has
// which kernel changes over time, so all are asked; one that is gone is passed
// over.
var kernelSuites = []string{"bookworm-backports", "trixie", "trixie-backports", "sid"}

// packages are what makes up one kernel.
type packages struct {
	release string   // uname -r
	version string   // Debian's
	names   []string // binary packages, all of that version
}

// metapackage depends on the newest kernel of a suite.
const metapackage = "linux-image-amd64"

// resolve finds the newest kernel of the series: what a suite's metapackage
// points to, or, when all suites have moved on, a versioned package that is
// still there.
func resolve(a *debian.Apt, series string) (*packages, error) {
	metas, err := a.Show(metapackage)
	if err != nil {
		return nil, err
	}
	image, version := pickImage(metas, series)
	if image == "" {
		out, err := a.Search(`^linux-image-[0-9]`)
		if err != nil {
			return nil, err
		}
		for _, name := range versionedImages(out, series) {
			stanzas, err := a.Show(name)
			if err != nil {
				return nil, err
			}
			for _, s := range stanzas {
				if image == "" || debian.CompareVersions(s["version"], version) > 0 {
					image, version = name, s["version"]
				}
			}
		}
	}
	if image == "" {
		var have []string
		for _, m := range metas {
			have = append(have, m["version"])
		}
		return nil, fmt.Errorf("no suite of %v has a %s kernel (%s: %s)", kernelSuites, series, metapackage, strings.Join(have, ", "))
	}
	stanzas, err := a.Show(image + "=" + version)
	if err != nil {
		return nil, err
	}
	if len(stanzas) == 0 {
		return nil, errors.New("apt-cache show " + image + " printed nothing")
	}
	return kernelPackages(image, version, stanzas[0]["depends"]), nil
}

var dependency = regexp.MustCompile(`[a-z0-9][a-z0-9+.-]*`)

// pickImage chooses among the metapackage's versions the newest of the series
// and returns the versioned package that it depends on.
func pickImage(metas []map[string]string, series string) (image, version string) {
	for _, m := range metas {
		v := m["version"]
		if !debian.InSeries(v, series) || (image != "" && debian.CompareVersions(v, version) <= 0) {
			continue
		}
		for _, d := range strings.Split(m["depends"], ",") {
			if name := dependency.FindString(d); strings.HasPrefix(name, "linux-image-"+series) {
				image, version = name, v
			}
		}
	}
	return image, version
}

// versionedImages picks plain amd64 kernels of the series from apt-cache
// search's output: no cloud or realtime kernels, no unsigned or debug variants.
func versionedImages(search, series string) []string {
	form := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `[.+~-][^-]*(-[0-9]+)?-amd64$`)
	var out []string
	for _, line := range strings.Split(search, "\n") {
		name, _, _ := strings.Cut(line, " ")
		if form.MatchString(name) {
			out = append(out, name)
		}
	}
	return out
}

// kernelPackages adds the packages into which newer kernels are split: those
// of the same release that the image depends on.
func kernelPackages(image, version, depends string) *packages {
	p := &packages{
		release: strings.TrimPrefix(image, "linux-image-"),
		version: version,
		names:   []string{image},
	}
	for _, d := range strings.Split(depends, ",") {
		name := dependency.FindString(d)
		if strings.HasPrefix(name, "linux-") && strings.HasSuffix(name, "-"+p.release) && !slices.Contains(p.names, name) {
			p.names = append(p.names, name)
		}
	}
	return p
}
