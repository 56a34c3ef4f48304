package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"holdfast/manager/launch"
)

// standIn is what is launched: it does what files tell it.
const standIn = `#!/bin/sh
d=/run/holdfast-launch
mkdir -p $d
echo "$$ $0" >>"$d/$1"
systemd-notify --ready
while :; do
	if [ -e "$d/$1.exit" ]; then
		code=$(cat "$d/$1.exit")
		rm "$d/$1.exit"
		exit $code
	fi
	systemd-notify WATCHDOG=1
	sleep 0.1
done
`

// starts are the processes that were started for a name, each "PID PROGRAM".
func starts(name string) []string {
	b, _ := os.ReadFile("/run/holdfast-launch/" + name)
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// launched waits for the n-th process of a name, and gives its number.
func (g guest) launched(name string, n int) string {
	g.Helper()
	g.until(fmt.Sprintf("%s: process %d", name, n), func() bool { s := starts(name); return s[0] != "" && len(s) >= n })
	s := starts(name)
	if len(s) != n {
		g.Fatalf("%s: %d processes, and not %d", name, len(s), n)
	}
	pid, _, _ := strings.Cut(s[n-1], " ")
	return pid
}

func (g guest) ok(err error) {
	g.Helper()
	if err != nil {
		g.Fatalf("%v\n%s", err, g.journal())
	}
}

// units installs them, and nothing that they need.
func units(g guest) {
	g.makeInstall()
	g.write("/etc/fstab", "")
}

// program puts the stand-in somewhere.
func program(g guest, path string) {
	g.write(path, standIn)
	g.ok(os.Chmod(path, 0o755))
}

const standInPath = "/usr/local/sbin/holdfast-stand-in"

// standInFor has it be the server of some devices, as an operator would.
func standInFor(g guest, names ...string) {
	program(g, standInPath)
	for _, name := range names {
		unit := g.run("systemd-escape", "--template=holdfast-device@.service", name)
		g.write("/etc/systemd/system/"+unit+".d/a-stand-in.conf", "[Service]\nExecStart=\nExecStart="+standInPath+" %I\n")
	}
	g.run("systemctl", "daemon-reload")
}

var ctx = context.Background()

// odd is a directory as nobody should have one.
const odd = `/mnt/a "b" 100% c\d it's $HOME`

// launchAll tries each thing that a launcher can do with the units.
func launchAll(g guest) {
	standInFor(g, "vm-1.x", "boot-1", "not-enabled")
	if _, err := os.Stat("/usr/local/sbin/holdfast-serve"); err != nil {
		program(g, "/usr/local/sbin/holdfast-serve")
	}
	if text := g.run("systemd-analyze", "verify", "--man=no", "holdfast-device@x.service", "holdfast.target", "holdfast.slice"); text != "" {
		g.Errorf("systemd complains about the units: %s", text)
	}
	g.ok(launch.Detect(ctx))
	l := launch.NewSystemd()
	defer l.Close()
	show := func(unit, property string) string {
		return g.run("systemctl", "show", unit, "--value", "-p", property)
	}
	const name, unit = "vm-1.x", `holdfast-device@vm\x2d1.x.service`
	list := func() string {
		names, err := l.List(ctx)
		g.ok(err)
		return strings.Join(names, " ")
	}

	g.Log("start, death, exit codes")
	g.ok(l.Start(ctx, name))
	pid := g.launched(name, 1)
	g.ok(l.Start(ctx, name))
	if show(unit, "MainPID") != pid || show(unit, "ActiveState") != "active" || list() != name {
		g.Errorf("after a start: %s, list %q", show(unit, "ActiveState"), list())
	}
	g.run("kill", "-9", pid)
	g.run("kill", "-TERM", g.launched(name, 2))
	g.launched(name, 3)
	g.write("/run/holdfast-launch/"+name+".exit", "75")
	g.launched(name, 4)
	g.write("/run/holdfast-launch/"+name+".exit", "3")
	g.run("kill", "-HUP", g.launched(name, 5))
	g.launched(name, 6)
	g.write("/run/holdfast-launch/"+name+".exit", "0")
	g.until("it is over", func() bool { return list() == "" })
	g.ok(l.Start(ctx, name))
	pid = g.launched(name, 7)
	if a, b := g.run("readlink", "/proc/1/ns/mnt"), g.run("readlink", "/proc/"+pid+"/ns/mnt"); a != b {
		g.Errorf("the server is in a mount namespace of its own: %s and %s", a, b)
	}
	if v := g.read("/proc/" + pid + "/oom_score_adj"); v != "-1000\n" {
		g.Errorf("oom_score_adj is %s", v)
	}
	if v := g.read("/proc/" + pid + "/cgroup"); !strings.Contains(v, "/holdfast.slice/") {
		g.Errorf("it is in %s", v)
	}
	if v := g.read("/proc/" + pid + "/status"); !regexp.MustCompile(`(?m)^Seccomp:\s+2$`).MatchString(v) {
		g.Error("no seccomp")
	}

	g.Log("systemd executes itself again, and closes its connections")
	g.run("systemctl", "daemon-reexec")
	g.until("the list is back", func() bool { names, err := l.List(ctx); return err == nil && len(names) == 1 })
	if show(unit, "MainPID") != pid {
		g.Error("the server did not survive it")
	}

	g.Log("another program, and back")
	other := `/usr/local/sbin/holdfast serve 100% old`
	program(g, other)
	g.ok(l.SetBinary(ctx, name, other))
	g.write("/run/holdfast-launch/"+name+".exit", "75")
	g.launched(name, 8)
	if got := starts(name)[7]; !strings.HasSuffix(got, other) {
		g.Errorf("it runs %s", got)
	}
	g.ok(l.SetBinary(ctx, name, ""))
	g.write("/run/holdfast-launch/"+name+".exit", "75")
	g.launched(name, 9)
	if got := starts(name)[8]; !strings.HasSuffix(got, standInPath) {
		g.Errorf("it runs %s", got)
	}
	if n, err := l.Restarts(ctx, name); n != 2 || err != nil {
		g.Errorf("%d restarts since the last start, and not 2; %v", n, err)
	}

	g.Log("where the images are")
	g.ok(os.MkdirAll(odd, 0o755))
	g.run("mount", "-t", "tmpfs", "none", odd)
	g.ok(os.MkdirAll("/mnt/images", 0o755))
	g.write("/etc/fstab", g.read("/etc/fstab")+"none /mnt/images tmpfs noauto 0 0\n")
	g.run("systemctl", "daemon-reload")
	g.ok(l.Mounts(ctx, name, []string{odd + "/top.hds", "/mnt/images/base.hds", "/mnt/images/base.hds"}))
	// systemctl quotes names, and has no Requires= for what was mounted by hand.
	after := strings.ReplaceAll(show(unit, "After"), `\\`, `\`)
	for _, where := range []string{odd, "/mnt/images"} {
		mount := g.run("systemd-escape", "--path", "--suffix=mount", where)
		if !strings.Contains(after, mount) {
			g.Errorf("%s, which is %s, is not among %s", where, mount, after)
		}
	}
	if requires := show(unit, "Requires"); !strings.Contains(requires, "mnt-images.mount") {
		g.Errorf("it requires %s", requires)
	}
	g.ok(l.Stop(ctx, name))
	g.until("it has stopped", func() bool { return list() == "" })
	if _, err := g.try("mountpoint", "-q", "/mnt/images"); err == nil {
		g.Error("the images' file system is mounted already")
	}
	g.ok(l.Start(ctx, name))
	g.launched(name, 10)
	if _, err := g.try("mountpoint", "-q", "/mnt/images"); err != nil {
		g.Error("the server was started without its images' file system")
	}
	g.ok(l.Stop(ctx, name))
	g.until("it has stopped", func() bool { return list() == "" })
	g.run("umount", "/mnt/images")
	g.write("/run/systemd/system/mnt-images.mount", "[Mount]\nWhat=none\nWhere=/mnt/images\nType=missing\n")
	g.run("systemctl", "daemon-reload")
	// Which may take longer here than one call waits.
	g.until("a start without its file system fails", func() bool {
		err := l.Start(ctx, name)
		return err != nil && strings.Contains(err.Error(), "can't be had")
	})
	g.launched(name, 10)
	g.run("rm", "/run/systemd/system/mnt-images.mount")

	g.Log("forgotten")
	g.ok(l.Enable(ctx, name, true))
	g.ok(l.Forget(ctx, name))
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system"} {
		if left, _ := filepath.Glob(dir + "/holdfast-device@*/[bi]*.conf"); len(left) != 0 {
			g.Errorf("Forget left %q", left)
		}
	}
	if state, _ := g.try("systemctl", "is-enabled", unit); state != "disabled" {
		g.Errorf("a forgotten unit is %s", state)
	}
	g.run("umount", odd)

	g.Log("for the next boot")
	g.ok(l.Enable(ctx, "boot-1", true))
	g.ok(l.Mounts(ctx, "boot-1", []string{"/mnt/images/top.hds"}))
	g.ok(l.Start(ctx, "not-enabled"))
	g.launched("not-enabled", 1)
	g.run("systemctl", "stop", "holdfast.target")
	g.until("the target's end is that of all", func() bool { return list() == "" })
}

// launchedAtBoot is the boot after.
func launchedAtBoot(g guest) {
	g.launched("boot-1", 1)
	if _, err := g.try("mountpoint", "-q", "/mnt/images"); err != nil {
		g.Error("the server was started without its images' file system")
	}
	l := launch.NewSystemd()
	defer l.Close()
	names, err := l.List(ctx)
	g.ok(err)
	if !slices.Contains(names, "boot-1") || slices.Contains(names, "not-enabled") || slices.Contains(names, "vm-1.x") {
		g.Errorf("at boot were started: %q", names)
	}
	g.ok(l.Stop(ctx, "boot-1"))
	g.ok(l.Forget(ctx, "boot-1"))
	if out, _ := g.try("journalctl", "-b", "--no-pager", "-o", "cat", "-g", "ordering cycle"); strings.Contains(out, "ordering cycle") {
		g.Errorf("units order each other in circles:\n%s", out)
	}
}
