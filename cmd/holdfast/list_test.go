package main

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestListColumns(t *testing.T) {
	f := newStandbyDaemon(t)
	for _, tt := range []struct{ line, out string }{
		{"list -o name,state", "NAME STATE\nvol  standby:3/64\n"},
		{"list --output=STATE,name,state --noheadings", "standby:3/64 vol standby:3/64\n"},
		{"ls -n -b -o size,cause,rbytes", "1073741824 \"write of\\n\\\"/srv/top\\\"\" 0\n"},
		{"list -o +held,tags -n", "vol /dev/ublkb0 1G 0 standby:3/64 2 /srv/top - 3 64\n"},
		{"list -o recovery", "RESUME\nreopen\n"},
		{"list -o consumers,resume,since,created -n", "lio,me reopen 2026-03-01T12:00:00 -\n"},
	} {
		var out, errs bytes.Buffer
		if code := run(words(tt.line), &out, &errs); code != 0 || out.String() != tt.out {
			t.Errorf("%s: exit %d\n%swant\n%s%s", tt.line, code, &out, tt.out, &errs)
		}
	}
	// Who uses devices is looked for when it is to be shown, and only then.
	for line, want := range map[string]string{"list": "", "list -o name": "false", "list -o name,users": "", "list --json": "", "standby-check": "false", "why vol": "false"} {
		f.users = "?"
		run(words(line), io.Discard, io.Discard)
		if f.users != want {
			t.Errorf("%s: asked for devices with users=%q, want %q", line, f.users, want)
		}
	}
	// JSON is what it is without these flags.
	var plain, chosen, errs0 bytes.Buffer
	if run(words("list --json"), &plain, &errs0) != 0 || run(words("list --json -o name -n -b"), &chosen, &errs0) != 0 || plain.String() != chosen.String() || plain.Len() == 0 {
		t.Errorf("%s\nwith columns\n%s%s", &plain, &chosen, &errs0)
	}
	// A device that waits for a server has no figures.
	f.held.State = "recovering"
	var out, errs bytes.Buffer
	if run(words("list -n -o size,reads,id"), &out, &errs); out.String() != "- - 0\n" {
		t.Errorf("recovering: %q", &out)
	}
	out.Reset()
	run(words("list -o all -n"), &out, &errs)
	all := len(strings.Fields(out.String()))
	out.Reset()
	run(words("list --run-dir /nowhere -o help"), &out, &errs)
	if n := strings.Count(out.String(), "\n") - 1; n != len(listColumns) || all < n {
		t.Errorf("%d columns, %d in the help, %d words in all of them", len(listColumns), n, all)
	}
}

// TestJSONEverywhere: whatever prints an answer prints it for programs as well.
func TestJSONEverywhere(t *testing.T) {
	silent := []string{"daemon", "remove", "attach", "detach", "attr set", "image create", "image convert", "completion", "help"}
	var check func(c *cli.Command, path string)
	check = func(c *cli.Command, path string) {
		path = strings.TrimSpace(path + " " + c.Name)
		for _, sub := range c.Subcommands {
			check(sub, path)
		}
		if c.Hidden || len(c.Subcommands) > 0 {
			return
		}
		has := slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return f.Names()[0] == "json" })
		if has == slices.Contains(silent, path) {
			t.Errorf("%s: --json %v", path, has)
		}
	}
	for _, c := range newApp(io.Discard, io.Discard).Commands {
		check(c, "")
	}
	newStandbyDaemon(t)
	for line, want := range map[string]string{
		"standby vol --json": `"value": "on"`, "standby vol off --json": `"value": "off"`, "standby-check --json": `"holders": [`,
		"why vol --json": `"sentences": [`, "wait vol standby --json": `"state": "standby"`, "replace vol /f --json": `"name": "vol"`,
		"recover vol --json": `"name": "vol"`, "attr get block/vol/state --json": `"value": "standby"`, "attr list -r --json": `"path": "block/vol/state"`,
		"version --json": `"version": "`, "create v --image f --json": `"name": "v"`,
	} {
		var out, errs bytes.Buffer
		if code := run(words(line), &out, &errs); code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: exit %d, %q, %q", line, code, &out, &errs)
		}
	}
}
