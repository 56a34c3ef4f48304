package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// brittle is a disk that can be taken away: device mapper over a loop device.
type brittle struct {
	d     dir
	name  string
	table string
	path  string
}

const brittleSectors = 32 << 11

func (d dir) brittle(name string) *brittle {
	d.t.Helper()
	for _, m := range []string{"loop", "dm_mod"} {
		exec.Command("modprobe", m).Run() // may be built in
	}
	back := d.file(name + ".back")
	if err := os.WriteFile(back, nil, 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Truncate(back, brittleSectors<<9); err != nil {
		d.t.Fatal(err)
	}
	loop := d.out("losetup", "-f", "--show", back)
	d.t.Cleanup(func() { exec.Command("losetup", "-d", loop).Run() })
	b := &brittle{d: d, name: "hf-cmd-" + name, table: fmt.Sprintf("0 %d linear %s 0", brittleSectors, loop)}
	d.sh("dmsetup", "create", b.name, "--noudevsync", "--table", b.table)
	d.t.Cleanup(func() { exec.Command("dmsetup", "remove", "--noudevsync", "--retry", b.name).Run() })
	b.path = "/dev/dm-" + d.out("dmsetup", "info", "-c", "--noheadings", "-o", "minor", b.name)
	return b
}

func (d dir) out(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		d.t.Fatalf("%s %q: %v", name, args, err)
	}
	return strings.TrimSpace(string(out))
}

func (b *brittle) load(table string) {
	b.d.t.Helper()
	b.d.sh("dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs", b.name)
	b.d.sh("dmsetup", "load", b.name, "--table", table)
	b.d.sh("dmsetup", "resume", "--noudevsync", b.name)
}

func (b *brittle) die()    { b.d.t.Helper(); b.load(fmt.Sprintf("0 %d error", brittleSectors)) }
func (b *brittle) revive() { b.d.t.Helper(); b.load(b.table) }

// cat reads an attribute of the mounted tree, and echo writes one, as the shell's do.
func (d dir) cat(path string) string {
	d.t.Helper()
	return d.out("cat", d.file("run/sys/"+path))
}

func (d dir) echo(value, path string) error {
	f, err := os.OpenFile(d.file("run/sys/"+path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value + "\n")
	return err
}

func (d dir) until(what string, ok func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("waited in vain for %s: %s", what, d.holdfast("list").out)
		}
	}
}

// dd begins to write to a disk and tells how that ends.
func dd(disk string) <-chan error {
	ended := make(chan error, 1)
	go func() {
		out, err := exec.Command("dd", "if=/dev/urandom", "of="+disk, "bs=64k", "count=16", "oflag=direct", "status=none").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	return ended
}

// TestStandbyByFiles is the story as an operator sees it, by cat, echo and the commands.
func TestStandbyByFiles(t *testing.T) {
	needKernel(t)
	exec.Command("modprobe", "fuse").Run() // may be built in
	d := newDir(t)
	b := d.brittle("a")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := free.Addr().String()
	free.Close()
	daemon := d.daemon("--metrics-listen", metrics)
	hook := d.file("hook")
	script := "#!/bin/sh\necho $HOLDFAST_DEVICE $HOLDFAST_STATE $HOLDFAST_ERRNO >>" + d.file("hooked") + "\n"
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	disk := strings.TrimSpace(d.ok("create", "a", "--image", "raw@"+b.path, "--on-standby", hook, "--on-recovered", hook))
	const value, enable, check = "block/a/queue/standby", "block/a/queue/standby_en", "module/parameters/standby_check"
	want := func(path, v string) {
		t.Helper()
		if got := d.cat(path); got != v {
			t.Errorf("%s reads %q, want %q", path, got, v)
		}
	}
	refused := func(v, path string, why error) {
		t.Helper()
		if err := d.echo(v, path); !errors.Is(err, why) {
			t.Errorf("echo %s >%s: %v, want %v", v, path, err, why)
		}
	}
	// Without the fuses an error is an error.
	want(value, "not supported")
	refused("on", value, syscall.EOPNOTSUPP)
	b.die()
	if err := <-dd(disk); err == nil {
		t.Error("dead storage, and no error")
	}
	want(value, "not supported")
	b.revive()
	// With them it is a wait.
	for _, path := range []string{check, enable} {
		want(path, "0")
		refused("yes", path, syscall.EINVAL)
		if err := d.echo("1", path); err != nil {
			t.Fatal(err)
		}
		want(path, "1")
	}
	want(value, "off")
	b.die()
	wait := dd(disk)
	d.until("standby", func() bool { return d.cat(value) == "on" })
	d.until("a held request", func() bool { return d.cat("block/a/held") == "1" })
	want("block/a/state", "standby")
	if why := d.ok("why", "a"); !strings.Contains(why, "EIO") || !strings.Contains(why, "holdfast replace a --top") {
		t.Errorf("why: %s", why)
	}
	r := d.holdfast("list")
	if !strings.Contains(r.out, "standby:1/") || !strings.Contains(r.errors, "in standby since") {
		t.Errorf("list: %s%s", r.out, r.errors)
	}
	if r := d.holdfast("replace", "a", "raw@"+b.path); r.code == 0 {
		t.Error("replaced by a disk that is dead")
	}
	want(value, "on")
	select {
	case err := <-wait:
		t.Fatalf("the writer did not wait: %v", err)
	default:
	}
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(text), `holdfast_standby{device="a"} 1`) || !strings.Contains(string(text), `holdfast_held_requests{device="a"} 1`) {
		t.Errorf("metrics: %.2000s", text)
	}
	b.revive()
	d.ok("replace", "a", "--top", "raw@"+b.path)
	if err := <-wait; err != nil {
		t.Errorf("the writer saw %v", err)
	}
	want(value, "off")
	d.until("both hooks", func() bool {
		got, _ := os.ReadFile(d.file("hooked"))
		return string(got) == "a on EIO\na off\n"
	})
	var kinds []string
	for line := range strings.Lines(d.ok("events", "--json", "--device", "a")) {
		var e struct{ Kind string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Kind)
	}
	if all := strings.Join(kinds, " "); !strings.Contains(all, "attached standby replace-failed") || !strings.HasSuffix(all, "recovered replaced") && !strings.HasSuffix(all, "replaced recovered") {
		t.Errorf("events: %s", all)
	}
	// Others read, and write not.
	for _, dir := range []string{filepath.Dir(d.path), d.path, d.file("run")} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nobody := func(script string) (string, error) {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := nobody("cat " + d.file("run/sys/"+value)); err != nil || out != "off" {
		t.Errorf("nobody reads %q, %v", out, err)
	}
	if out, err := nobody("echo on >" + d.file("run/sys/"+value)); err == nil || !strings.Contains(out, "ermission denied") {
		t.Errorf("nobody writes: %q, %v", out, err)
	}
	// A manager that was killed leaves its tree; the next one replaces it.
	daemon.Process.Kill()
	daemon.Wait()
	if out, err := exec.Command("cat", d.file("run/sys/"+check)).CombinedOutput(); err == nil {
		t.Errorf("the tree of a dead daemon reads %q", out)
	}
	d.daemon()
	want(check, "1") // in the same boot, as everything
	d.until("the recovery", func() bool { return d.object("show", "a")["state"] == "live" })
	want(enable, "1")
	want(value, "off")
	d.ok("remove", "a")
	if _, err := os.Stat(d.file("run/sys/block/a")); err == nil {
		t.Error("a removed device is still in the tree")
	}
}

// TestTimeoutAndReopen ends a hold by its time-out, and then has the device find its
// storage again by itself.
func TestTimeoutAndReopen(t *testing.T) {
	needKernel(t)
	d := newDir(t)
	b := d.brittle("b")
	d.daemon("--no-sysfs", "--targets", "none")
	disk := strings.TrimSpace(d.ok("create", "b", "--image", "raw@"+b.path, "--recovery", "reopen", "--standby-timeout", "2s", "--standby-errors", "EIO,ESTALE"))
	d.ok("standby-check", "on")
	d.ok("attach", "b", "--consumer", "me")
	b.die()
	if err := <-dd(disk); err == nil {
		t.Error("nothing failed after the time-out")
	}
	if s := d.object("show", "b"); s["state"] != "failing" {
		t.Errorf("state %v", s["state"])
	}
	if err := <-dd(disk); err == nil {
		t.Error("new requests don't fail after the time-out")
	}
	b.revive()
	d.until("the recovery", func() bool { return strings.TrimSpace(d.ok("standby", "b", "status")) == "off" })
	if err := <-dd(disk); err != nil {
		t.Error(err)
	}
	d.fails(1, "no lease", "detach", "b", "--consumer", "you")
	d.ok("detach", "b", "--consumer", "me")
	if got := strings.TrimSpace(d.ok("attr", "get", "block/b/queue/standby")); got != "not supported" {
		t.Errorf("without a lease: %q", got)
	}
	d.fails(2, "neither on nor off", "attr", "set", "block/b/queue/standby", "x")
	d.fails(1, "not supported", "standby", "b", "on")
	d.ok("remove", "b")
}
