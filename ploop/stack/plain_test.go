package stack

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/draft"
	"holdfast/ploop/internal/storage"
)

// TestNoPoller wants no file of an image among those that the runtime polls: adding one
// asks its storage, which may not answer, and stops the process meanwhile.
func TestNoPoller(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a FUSE mount takes root")
	}
	faulty, err := faultfs.Mount(t.TempDir(), t.TempDir(), faultfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { faulty.Close() })
	at := func(name string) string { return filepath.Join(faulty.Dir, name) }

	control, err := os.Create(at("control"))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if !polled(t, at("control")) {
		t.Fatal("package os doesn't have the runtime poll the file: the test shows nothing")
	}

	draft, err := draft.New(at("draft"))
	if err != nil {
		t.Fatal(err)
	}
	if polled(t, draft.Name()) {
		t.Error("a draft is polled")
	}
	draft.Discard()

	base, top := mustCreate(t, at("base"), ploop.CreateOptions{Size: 1 << 20}), mustCreate(t, at("top"), ploop.CreateOptions{Size: 1 << 20})
	s := mustOpen(t, []image.Ref{base, top}, Options{})
	if polled(t, base.Path) || polled(t, top.Path) {
		t.Error("an image of a stack is polled")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := storage.OpenUnlocked(top.Path, false, false)
	if err != nil {
		t.Fatal(err)
	}
	if polled(t, top.Path) {
		t.Error("an image that is only looked at is polled")
	}
	f.Close()
}

// polled says whether an epoll instance of this process has an open file of that path.
func polled(t *testing.T, path string) bool {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	link := func(fd string) string {
		to, _ := os.Readlink("/proc/self/fd/" + fd) // one that is closed meanwhile is none
		return to
	}
	instances := 0
	for _, e := range fds {
		if link(e.Name()) != "anon_inode:[eventpoll]" {
			continue
		}
		instances++
		info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			var fd int
			if n, _ := fmt.Sscanf(line, "tfd: %d", &fd); n == 1 && link(fmt.Sprint(fd)) == path {
				return true
			}
		}
	}
	if instances == 0 {
		t.Fatal("the runtime's epoll instance isn't found")
	}
	return false
}

// TestNoFilesOfPackageOS finds what TestNoPoller doesn't come by.
func TestNoFilesOfPackageOS(t *testing.T) {
	opens := map[string]bool{"Open": true, "OpenFile": true, "OpenInRoot": true, "OpenRoot": true, "Create": true, "CreateTemp": true,
		"NewFile": true, "ReadFile": true, "WriteFile": true, "DirFS": true, "CopyFS": true}
	files := []string{"../../server/device/reopen.go"}
	for _, dir := range []string{".", "..", "../internal/*"} {
		more, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(more) == 0 {
			t.Fatal(dir, more, err)
		}
		files = append(files, more...)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && (pkg.Name == "os" && opens[sel.Sel.Name] || pkg.Name == "renameio") {
				t.Errorf("%v: %s.%s has the runtime poll the file, whose storage may not answer; use package plain", fset.Position(n.Pos()), pkg.Name, sel.Sel.Name)
			}
			return true
		})
	}
}
