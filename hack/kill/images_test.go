package kill

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/hack/tool"
	"holdfast/ploop"
	"holdfast/ploop/stack"
)

// images are a stack of deltas in files, and the model of what is in it.
type images struct {
	refs    []ploop.ImageRef // base first
	cluster int64
	model   *Model
}

// direct is a stack without a device, as a Disk.
type direct struct{ *stack.Stack }

var _ Disk = direct{}

func (d direct) WriteDurable(p []byte, off int64) (int, error) {
	n, err := d.WriteAt(p, off)
	if err == nil {
		err = d.Flush()
	}
	return n, err
}

func (d direct) Zero(off, n int64) error { return d.WriteZeroes(off, n, false) }

// Small clusters, so that there is always something left to allocate and to copy up.
const smallCluster = 32 << 10

// threeDeltas makes a raw base and a middle with data in them, and an empty top.
func threeDeltas(t *testing.T, dir string, size int64, seed uint64) *images {
	t.Helper()
	g := &images{cluster: smallCluster, model: NewModel(seed, size)}
	base := ploop.ImageRef{Path: filepath.Join(dir, "base.raw"), Raw: true}
	must(t, os.WriteFile(base.Path, nil, 0o600))
	must(t, os.Truncate(base.Path, size))
	g.refs = append(g.refs, base)
	g.fill(t, 60)
	g.add(t, filepath.Join(dir, "middle.hds"))
	g.fill(t, 30)
	g.add(t, filepath.Join(dir, "top.hds"))
	return g
}

// oneDelta makes an image that has something in it. Over one delta, discards give
// clusters back.
func oneDelta(t *testing.T, dir string, size int64, seed uint64) *images {
	t.Helper()
	g := &images{cluster: smallCluster, model: NewModel(seed, size)}
	path := filepath.Join(dir, "one.hds")
	must(t, ploop.Create(path, ploop.CreateOptions{Size: size, ClusterSize: g.cluster, AnyClusterSize: true}))
	g.refs = []ploop.ImageRef{{Path: path}}
	g.fill(t, 40)
	return g
}

// add puts an empty delta on top.
func (g *images) add(t *testing.T, path string) {
	t.Helper()
	must(t, ploop.Create(path, ploop.CreateOptions{Backing: &g.refs[len(g.refs)-1], ClusterSize: g.cluster, AnyClusterSize: true}))
	g.refs = append(g.refs, ploop.ImageRef{Path: path})
}

func (g *images) fill(t *testing.T, percent int) {
	t.Helper()
	s, err := stack.Open(g.refs, stack.Options{})
	must(t, err)
	g.model.Fill(direct{s}, g.cluster, percent)
	must(t, s.Close())
	noLies(t, g.model)
}

// arguments are what `holdfast create` wants.
func (g *images) arguments() []string {
	var args []string
	for _, r := range g.refs {
		args = append(args, "--image", argument(r))
	}
	return args
}

func argument(r ploop.ImageRef) string {
	if r.Raw {
		return "raw@" + r.Path
	}
	return r.Path
}

// sound looks at images that nobody serves: nothing is wrong with them but for
// leaked clusters, and they read as they may.
func (g *images) sound(t *testing.T, s *server) {
	t.Helper()
	args := []string{"image", "check"}
	for _, r := range g.refs {
		args = append(args, argument(r))
	}
	out, err := exec.Command(s.program, args...).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() != 3) {
		t.Errorf("holdfast %s: %v: %s", strings.Join(args, " "), err, out)
	}
	d, err := stack.Open(g.refs, stack.Options{ReadOnly: true})
	must(t, err)
	defer d.Close()
	g.model.Check(d)
	noLies(t, g.model)
}

// copyFile copies a file that nobody writes to.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	must(t, tool.Run("cp", "--sparse=always", from, to))
}
