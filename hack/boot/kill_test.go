package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// forTest has the units of servers be a little different: a line of [Service], "" for none.
func forTest(g guest, line string) {
	g.Helper()
	const path = "/run/systemd/system/holdfast-device@.service.d/test.conf"
	if line == "" {
		g.run("rm", "-f", path)
	} else {
		g.write(path, "[Service]\n"+line+"\n")
	}
	g.run("systemctl", "daemon-reload")
}

// kill ends servers and the manager in every way, under a file system whose user must not notice.
func kill(g guest) {
	// Not for a minute under emulation.
	forTest(g, "WatchdogSec=5s")
	l := g.load(byHand + "/load")
	pid, other := g.server("hand", "MainPID"), g.server("plain", "MainPID")
	restarts := func() (n int) { fmt.Sscan(g.server("hand", "NRestarts"), &n); return n }

	for range 3 {
		g.progress(l)
		g.run("kill", "-9", pid)
		pid = g.served(pid, "hand")
	}
	if n := restarts(); n != 3 {
		g.Errorf("%d restarts after 3 kills", n)
	}

	g.Log("the manager is killed")
	for range 3 {
		manager := g.unit("MainPID")
		g.run("kill", "-9", manager)
		if state := g.state("hand"); state != "live" { // asked of whoever is there
			g.Errorf("the device is %q", state)
		}
		g.progress(l)
		g.managed(manager)
	}
	if now := g.server("hand", "MainPID"); now != pid || restarts() != 3 {
		g.Errorf("the manager's end was one of the server: %s is %s, %d restarts", pid, now, restarts())
	}

	// The watchdog's time is that of the server's start: this one knows of the 5 seconds.
	g.Log("stopped by SIGSTOP, for as long as the watchdog takes")
	began := time.Now()
	g.run("kill", "-STOP", pid)
	pid = g.served(pid, "hand")
	if t := time.Since(began); t < 3*time.Second {
		g.Errorf("the server was replaced after %v", t)
	}
	for _, words := range []string{"Watchdog timeout", "SIGABRT", "goroutine "} {
		if out, err := g.try("journalctl", "-b", "-u", serverUnit("hand"), "--no-pager", "-o", "cat", "-n", "1", "-g", words); err != nil || !strings.Contains(out, words) {
			g.Errorf("the journal doesn't say %q: %s", words, out)
		}
	}

	g.Log("stopped and continued")
	g.run("kill", "-STOP", pid)
	time.Sleep(time.Second)
	g.run("kill", "-CONT", pid)
	g.progress(l)
	if g.server("hand", "MainPID") != pid {
		g.Error("the server did not survive a short stop")
	}

	g.Log("killed for its memory")
	// Which the kernel would not do by itself: it is to find it the worst of all.
	g.write("/proc/"+pid+"/oom_score_adj", "1000")
	g.write("/proc/sysrq-trigger", "f")
	pid = g.served(pid, "hand")
	if log := g.run("dmesg"); !regexp.MustCompile(`Out of memory: Killed process \d+ \(holdfast-serve\)`).MatchString(log) {
		g.Errorf("the kernel did not kill it")
	}
	if score := g.read("/proc/" + pid + "/oom_score_adj"); score != "-1000\n" {
		g.Errorf("the next server has oom_score_adj %s", score)
	}
	g.end(l)
	if now := g.server("plain", "MainPID"); now != other {
		g.Errorf("the server of another device was %s and is %s", other, now)
	}
	quiesced(g, pid)
	upgrade(g)
}

// quiesced: while a device has no server, udev doesn't wait for it, and its links stay.
func quiesced(g guest, pid string) {
	forTest(g, "RestartSec=1h")
	g.run("kill", "-9", pid)
	g.until("systemd's notice", func() bool { return g.server("hand", "SubState") == "auto-restart" })
	if state := g.state("hand"); state != "recovering" {
		g.Errorf("without a server the device is %q", state)
	}
	disk, err := os.Readlink("/dev/holdfast/hand")
	if err != nil {
		g.Fatal(err)
	}
	disk = strings.TrimPrefix(disk, "../")
	g.run("timeout", "60", "udevadm", "trigger", "--settle", "--action=change", "/sys/class/block/"+disk)
	for _, link := range []string{"/dev/holdfast/hand", "/dev/disk/by-label/hand"} {
		if _, err := os.Stat(link); err != nil {
			g.Error(err)
		}
	}
	if props := g.run("udevadm", "info", "/dev/"+disk); !strings.Contains(props, "HOLDFAST_READY=0") || !strings.Contains(props, "ID_FS_TYPE=ext4") {
		g.Errorf("udev knows:\n%s", props)
	}
	if g.server("hand", "SubState") != "auto-restart" {
		g.Error("the device was not without a server for all that time")
	}
	forTest(g, "")
	g.run("systemctl", "restart", serverUnit("hand"))
	g.served(pid, "hand")

	// Where the driver wants its time-out short, udev sees to it as well.
	timeout := "/sys/block/" + disk + "/queue/io_timeout"
	if g.run("cat", timeout) == "500" {
		g.write(timeout, "30000")
		g.run("timeout", "60", "udevadm", "trigger", "--settle", "--action=add", "/sys/class/block/"+disk)
		if got := g.run("cat", timeout); got != "500" {
			g.Errorf("after a look of udev's %s is %s", timeout, got)
		}
	}
}

// upgrade: reload gives each device a new server, and the manager its program anew.
func upgrade(g guest) {
	l := g.load(byHand + "/load2")
	manager, pid, other := g.unit("MainPID"), g.server("hand", "MainPID"), g.server("plain", "MainPID")
	ready := func() int {
		return strings.Count(g.run("journalctl", "-b", "_PID="+manager, "-o", "cat", "--no-pager"), `"message":"ready"`)
	}
	for range 2 {
		n := ready()
		g.run("systemctl", "reload", "holdfast.service")
		pid, other = g.served(pid, "hand"), g.served(other, "plain")
		g.until("the manager's program anew", func() bool { return ready() == n+1 })
		g.progress(l)
	}
	g.run("holdfast", "list") // at the same socket
	if now := g.unit("MainPID"); now != manager || g.unit("ActiveState") != "active" {
		g.Errorf("the manager was process %s and is %s, %s", manager, now, g.unit("ActiveState"))
	}
	g.run("kill", "-9", pid)
	pid = g.served(pid, "hand")
	if left, _ := filepath.Glob("/run/systemd/system/holdfast-device@*/binary.conf"); len(left) != 0 {
		g.Errorf("an upgrade that went well left %q", left)
	}
	// A program that can't serve fails once, and the one before serves again.
	const broken = "/usr/local/sbin/holdfast-broken"
	g.write(broken, "#!/bin/sh\ncase \"$*\" in *-version*) echo holdfast-serve 9.9.9; exit 0;; esac\nexit 1\n")
	g.run("chmod", "755", broken)
	if out, err := g.try("holdfast", "upgrade", "--binary", broken, "hand"); err == nil || !strings.Contains(out, "ends without serving it") || !strings.Contains(out, "journalctl") {
		g.Errorf("an upgrade to a program that can't serve: %v\n%s", err, out)
	}
	g.served(pid, "hand")
	g.end(l)
}

// stop: of the manager, which no device notices, and of a server whose device is in use. What is in use
// when the server's patience ends waits for the next one.
func stop(g guest) {
	l := g.load(byHand + "/load3")
	pid := g.server("hand", "MainPID")
	g.run("systemctl", "stop", "holdfast.service", "holdfast.socket")
	g.progress(l)
	if state := g.state("hand"); state != "live" { // the server says so
		g.Errorf("without a manager the device is %q", state)
	}
	g.run("systemctl", "start", "holdfast.socket")
	g.managed("0")
	if now := g.server("hand", "MainPID"); now != pid {
		g.Errorf("stopping the manager replaced the server, %s, by %s", pid, now)
	}

	forTest(g, "Environment=HOLDFAST_STOP_TIMEOUT=2s")
	g.run("kill", "-9", pid)
	pid = g.served(pid, "hand")
	g.progress(l)
	g.run("systemctl", "stop", serverUnit("hand"))
	if state := g.server("hand", "ActiveState"); state != "inactive" {
		g.Errorf("the stopped server is %s", state)
	}
	if state := g.state("hand"); state != "recovering" {
		g.Errorf("after the server's end the device is %q", state)
	}
	g.run("mountpoint", byHand)
	g.run("systemctl", "start", serverUnit("hand"))
	pid = g.served(pid, "hand")
	g.progress(l)
	forTest(g, "") // for the next one: the one that runs still has little patience
	g.run("systemctl", "restart", serverUnit("hand"))
	g.served(pid, "hand")
	g.progress(l)
	g.end(l)
}
