// Package debian fetches Debian packages for a use outside the machine's own
// packages: other suites' kernels, sources and headers. It goes through the
// machine's configured mirror and key ring, with lists, state and cache of its
// own, so that nothing of the machine's package system changes.
//
// HOLDFAST_VM_MIRROR names a mirror where the machine's apt sources have none.
package debian

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Apt runs apt's tools with a sources list, state and cache of its own, so that
// the machine's stay as they are.
type Apt struct {
	dir     string
	suites  []string
	options []string
}

// Suites are those that are searched for what isn't in the machine's own: those that
// there are, and those to come, as far as their names are known.
var Suites = []string{"bookworm-backports", "trixie", "trixie-backports", "forky", "forky-backports", "sid"}

// New readies an Apt in dir for Debian's given suites. A suite that the mirror does
// not have is passed over. In a directory that was used before, the lists are still there;
// two must not use it at the same time.
func New(dir string, suites ...string) (*Apt, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("no %s: this needs Debian packages, and a Debian to fetch them with", tool)
		}
	}
	var m aptSource
	if url := os.Getenv("HOLDFAST_VM_MIRROR"); url != "" {
		m.URI = url
	} else {
		var err error
		if m, err = machineMirror("/etc/apt"); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	list, status := filepath.Join(dir, "sources.list"), filepath.Join(dir, "status")
	if err := os.WriteFile(list, []byte(sourcesList(m, suites)), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	return &Apt{dir, suites, []string{
		"-oDir::Etc::sourcelist=" + list,
		"-oDir::Etc::sourceparts=/dev/null",
		"-oDir::Etc::preferencesparts=/dev/null",
		"-oDir::State::lists=" + filepath.Join(dir, "lists"),
		"-oDir::State::status=" + status,
		"-oDir::Cache=" + filepath.Join(dir, "cache"),
		"-oAPT::Architecture=amd64",
		"-oAPT::Architectures=amd64",
		"-oAPT::Sandbox::User=", // _apt can't look into the caller's home
		"-oAcquire::Languages=none",
		"-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-oAcquire::Retries=3",
		"-oAPT::Update::Error-Mode=any", // else a mirror that can't be reached is a warning
		"-oAcquire::http::Timeout=20",
		"-oAcquire::https::Timeout=20",
	}}, nil
}

// Update fetches the suites' lists anew. When one of the suites is gone it fails, and
// has the others all the same.
func (a *Apt) Update() error {
	lists := filepath.Join(a.dir, "lists")
	if err := os.RemoveAll(lists); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return err
	}
	_, err := Output("apt-get", slices.Concat(a.options, []string{"-q", "update"})...)
	return err
}

// Answered tells which of the suites the last Update, in this process or another, got, and
// how long ago that was.
func (a *Apt) Answered() (suites []string, ago time.Duration) {
	lists := filepath.Join(a.dir, "lists")
	s, err := os.Stat(lists)
	if err != nil {
		return nil, 0
	}
	for _, suite := range a.suites {
		for _, name := range []string{"InRelease", "Release"} {
			if found, _ := filepath.Glob(filepath.Join(lists, "*_dists_"+suite+"_"+name)); len(found) > 0 {
				suites = append(suites, suite)
				break
			}
		}
	}
	return suites, time.Since(s.ModTime())
}

// Show returns every version of packages that the suites have, as its fields by
// name in lower case.
func (a *Apt) Show(packages ...string) ([]map[string]string, error) {
	out, err := Output("apt-cache", slices.Concat(a.options, []string{"show"}, packages)...)
	return Stanzas(out), err
}

// Search returns the lines of apt-cache search for package names that match.
func (a *Apt) Search(pattern string) (string, error) {
	return Output("apt-cache", slices.Concat(a.options, []string{"search", "--names-only", pattern})...)
}

// Newest returns the newest version of a package that the suites have.
func (a *Apt) Newest(pkg string) (string, error) {
	stanzas, err := a.Show(pkg)
	if err != nil {
		return "", err
	}
	newest := ""
	for _, s := range stanzas {
		if v := s["version"]; newest == "" || CompareVersions(v, newest) > 0 {
			newest = v
		}
	}
	if newest == "" {
		return "", fmt.Errorf("no suite has %s", pkg)
	}
	return newest, nil
}

// Fetch downloads packages, each NAME=VERSION, and unpacks them over each other
// under tree.
func (a *Apt) Fetch(tree string, packages ...string) error {
	debs, err := os.MkdirTemp(a.dir, "debs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	args := slices.Concat([]string{"-c", `cd "$1" && shift && exec "$@"`, "sh", debs, "apt-get"}, a.options, []string{"-q", "download"}, packages)
	if _, err := Output("sh", args...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, err := Output("dpkg-deb", "-x", f, tree); err != nil {
			return err
		}
	}
	return nil
}

// Output runs a command and returns what it prints; its error has the last
// lines of its standard error.
func Output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		tail := lines[max(0, len(lines)-5):]
		err = fmt.Errorf("%s: %w: %s", name, err, strings.Join(tail, "; "))
	}
	return string(out), err
}
