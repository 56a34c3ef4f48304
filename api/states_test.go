package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestStates: all states of package device and of this one can be waited for.
func TestStates(t *testing.T) {
	found := 0
	for _, file := range []string{"*.go"} {
		files, err := filepath.Glob(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.ValueSpec)
				if !ok || !strings.HasPrefix(spec.Names[0].Name, "State") || len(spec.Values) != 1 {
					return true
				}
				if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					state, _ := strconv.Unquote(lit.Value)
					if found++; !slices.Contains(States, state) {
						t.Errorf("%s: %s, %q, can't be waited for", file, spec.Names[0].Name, state)
					}
				}
				return true
			})
		}
	}
	if found < 13 || found != len(States) {
		t.Errorf("there are %d states, and %d that can be waited for", found, len(States))
	}
}
