package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"holdfast/api"

	"github.com/urfave/cli/v2"
)

// TestDocs: docs/cli.md is a contract, so it has every command, flag and JSON field.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	has := func(what, form string) {
		t.Helper()
		if !regexp.MustCompile(form).Match(text) {
			t.Errorf("docs/cli.md has nothing of %s", what)
		}
	}
	written := synopses(string(text))
	var command func(c *cli.Command, path string)
	command = func(c *cli.Command, path string) {
		path = strings.TrimSpace(path + " " + c.Name)
		if c.Hidden {
			return
		}
		for _, sub := range c.Subcommands {
			command(sub, path)
		}
		if len(c.Subcommands) > 0 {
			return
		}
		want := []string{}
		for _, f := range c.Flags {
			if name := f.Names()[0]; name != runDirName || path == "daemon" {
				want = append(want, "--"+name)
			}
			for _, alias := range f.Names()[1:] {
				dash := "-"
				if len(alias) > 1 {
					dash = "--"
				}
				has("flag "+dash+alias+" of "+path, "`"+dash+alias+"`")
			}
		}
		slices.Sort(want)
		got, ok := written[path]
		if !ok {
			t.Errorf("docs/cli.md has nothing of command %s", path)
		} else if !slices.Equal(got, want) {
			t.Errorf("%s has the flags %v, and docs/cli.md says %v", path, want, got)
		}
		delete(written, path)
		for _, alias := range c.Aliases {
			has("alias "+alias, "`"+alias+"`")
		}
	}
	for _, c := range newApp(io.Discard, io.Discard).Commands {
		command(c, "")
	}
	for path := range written {
		t.Errorf("docs/cli.md has a command %q, and there is none", path)
	}
	seen := map[reflect.Type]bool{}
	var fields func(typ reflect.Type)
	fields = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Pointer, reflect.Map:
			fields(typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[typ] || typ.PkgPath() == "time" {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" {
				has("the JSON field "+typ.String()+"."+name, "`"+name+"`")
			}
			if f.IsExported() {
				fields(f.Type)
			}
		}
	}
	fields(reflect.TypeFor[api.Snapshot]())
	fields(reflect.TypeFor[api.UpgradeResult]())
	fields(reflect.TypeFor[listedAttr]())
	if len(seen) < 10 {
		t.Errorf("looked at %d types only", len(seen))
	}
}

// synopses are the flags of each command, sorted, as the page's indented lines have them.
func synopses(page string) map[string][]string {
	out := map[string][]string{}
	// A synopsis goes on in lines that are indented more.
	page = regexp.MustCompile(`\n {8,}`).ReplaceAllString(page, " ")
	for _, line := range regexp.MustCompile(`(?m)^    (?:source <\()?holdfast ([a-z-]+(?: [a-z]+)?)(.*)$`).FindAllStringSubmatch(page, -1) {
		path := line[1]
		if group, _, two := strings.Cut(path, " "); two && group != "image" && group != "attr" {
			path = group
		}
		flags := regexp.MustCompile(`--[a-z-]+`).FindAllString(line[2], -1)
		slices.Sort(flags)
		out[path] = append([]string{}, slices.Compact(flags)...)
	}
	return out
}

// TestDocsNameEverything: states, kinds of events and exit codes.
func TestDocsNameEverything(t *testing.T) {
	page, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range api.States {
		if !strings.Contains(string(page), "`"+s+"`") {
			t.Errorf("docs/cli.md has nothing of state %q", s)
		}
	}
	for _, code := range []int{exitOK, exitFailure, exitUsage, exitBusy, exitUnreachable, exitDriver, exitTimeUp} {
		if !strings.Contains(string(page), fmt.Sprintf("\n| %d |", code)) {
			t.Errorf("docs/cli.md has nothing of exit code %d", code)
		}
	}
	kinds := 0
	for _, glob := range []string{"../../api/*.go"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^\tEvent[A-Za-z]+ += "([a-z-]+)"`).FindAllSubmatch(src, -1) {
				if kinds++; !strings.Contains(string(page), "`"+string(m[1])+"`") {
					t.Errorf("docs/cli.md has nothing of events %q", m[1])
				}
			}
		}
	}
	if kinds < 20 {
		t.Errorf("%d kinds of events found", kinds)
	}
}
