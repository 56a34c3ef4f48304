package main

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"holdfast/hack/debian"
)

// Kernels have names: a series, or one of these.
const (
	newest = "newest"
	oldest = "oldest"

	// oldestSeries is the oldest that holdfast promises to run on.
	oldestSeries = "6.12"
)

var nameForm = regexp.MustCompile(`^([0-9]+\.[0-9]+|` + newest + `|` + oldest + `)$`)

// archive is what has kernels: Debian's suites, through apt.
type archive interface {
	Update() error
	Answered() (suites []string, ago time.Duration)
	Show(packages ...string) ([]map[string]string, error)
	Search(pattern string) (string, error)
	Fetch(tree string, packages ...string) error
}

// choice is a kernel that a name may stand for, and the way to it.
type choice struct {
	version string
	get     func() (*kernel, error)
}

// packages are what makes up one kernel.
type packages struct {
	release string   // uname -r
	version string   // Debian's
	names   []string // binary packages, all of that version
}

// metapackage depends on the newest kernel of a suite. Which suite has which kernel
// changes over time, so all are asked.
const metapackage = "linux-image-amd64"

// offers are the kernels in the archive that a name may stand for: what a suite's
// metapackage points to, or, when all suites have moved on from a series, versioned packages that
// are still there.
func offers(a archive, name string, get func(*packages) (*kernel, error)) ([]choice, error) {
	metas, err := a.Show(metapackage)
	if err != nil {
		return nil, err
	}
	var out []choice
	add := func(image, version string, depends func() (string, error)) {
		out = append(out, choice{version, func() (*kernel, error) {
			d, err := depends()
			if err != nil {
				return nil, err
			}
			return get(kernelPackages(image, version, d))
		}})
	}
	for _, m := range metas {
		version, image := m["version"], imageOf(m["depends"])
		if image == "" {
			continue
		}
		add(image, version, func() (string, error) {
			stanzas, err := a.Show(image + "=" + version)
			if err == nil && len(stanzas) == 0 {
				err = errors.New("apt-cache show " + image + " printed nothing")
			}
			if err != nil {
				return "", err
			}
			return stanzas[0]["depends"], nil
		})
	}
	series := name
	switch name {
	case newest:
		return out, nil
	case oldest:
		series = oldestSeries
	}
	if slices.ContainsFunc(out, func(c choice) bool { return debian.InSeries(c.version, series) }) {
		return out, nil
	}
	found, err := a.Search(`^linux-image-[0-9]`)
	if err != nil {
		return nil, err
	}
	images := versionedImages(found)
	if len(images) == 0 {
		return out, nil
	}
	stanzas, err := a.Show(images...)
	if err != nil {
		return nil, err
	}
	for _, s := range stanzas {
		add(s["package"], s["version"], func() (string, error) { return s["depends"], nil })
	}
	return out, nil
}

// order returns the choices that a name stands for, the best first, and their series,
// which newest has none of. The oldest is oldestSeries; when all choices there are were
// seen, and none belongs to it, the first series after it.
func order(name string, choices []choice, all bool) (best []choice, series string) {
	choices = slices.Clone(choices)
	slices.SortStableFunc(choices, func(a, b choice) int { return -debian.CompareVersions(a.version, b.version) })
	in := func(c choice) bool { return debian.InSeries(c.version, series) }
	switch name {
	case newest, oldest:
		choices = slices.DeleteFunc(choices, func(c choice) bool { return debian.CompareVersions(c.version, oldestSeries+"~") < 0 })
		if name == newest {
			return choices, ""
		}
		series = oldestSeries
		if all && len(choices) > 0 && !slices.ContainsFunc(choices, in) {
			series = seriesOf(choices[len(choices)-1].version)
		}
	default:
		series = name
	}
	return slices.DeleteFunc(choices, func(c choice) bool { return !in(c) }), series
}

var seriesForm = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// seriesOf is the series that a version belongs to.
func seriesOf(version string) string { return seriesForm.FindString(version) }

var dependency = regexp.MustCompile(`[a-z0-9][a-z0-9+.-]*`)

// imageOf is the versioned package that a metapackage depends on.
func imageOf(depends string) string {
	for d := range strings.SplitSeq(depends, ",") {
		if name := dependency.FindString(d); imageForm.MatchString(name) {
			return name
		}
	}
	return ""
}

// imageForm matches packages of plain amd64 kernels: no cloud or realtime
// kernels, no unsigned or debug variants.
var imageForm = regexp.MustCompile(`^linux-image-[0-9]+\.[0-9]+[.+~-][^-]*(-[0-9]+)?-amd64$`)

// versionedImages picks kernels from apt-cache search's output.
func versionedImages(search string) []string {
	var out []string
	for line := range strings.SplitSeq(search, "\n") {
		name, _, _ := strings.Cut(line, " ")
		if imageForm.MatchString(name) {
			out = append(out, name)
		}
	}
	return out
}

// kernelPackages adds the packages into which newer kernels are split: those
// of the same release that the image depends on, but for what serves their installation
// only.
func kernelPackages(image, version, depends string) *packages {
	p := &packages{
		release: strings.TrimPrefix(image, "linux-image-"),
		version: version,
		names:   []string{image},
	}
	for _, d := range strings.Split(depends, ",") {
		name := dependency.FindString(d)
		if strings.HasPrefix(name, "linux-") && !strings.HasPrefix(name, "linux-base-") && strings.HasSuffix(name, "-"+p.release) && !slices.Contains(p.names, name) {
			p.names = append(p.names, name)
		}
	}
	return p
}
