package boot

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"
)

// kill ends the daemon in every way, under a file system whose user must not notice.
func kill(g guest) {
	// Not for a minute under emulation; and time to look at a device without a server.
	g.write("/run/systemd/system/holdfast.service.d/test.conf", "[Service]\nWatchdogSec=5s\n")
	g.run("systemctl", "daemon-reload")
	l := g.load(byHand + "/load")
	pid := g.unit("MainPID")
	restarts := func() (n int) { fmt.Sscan(g.unit("NRestarts"), &n); return n }

	for range 3 {
		n := l.n
		g.until("some progress", func() bool { return l.n > n+5 })
		g.run("kill", "-9", pid)
		pid = g.served(pid, "hand")
	}
	if n := restarts(); n != 3 {
		g.Errorf("%d restarts after 3 kills", n)
	}

	// The watchdog's time is that of the daemon's start: this one knows of the 5 seconds.
	g.Log("stopped by SIGSTOP, for as long as the watchdog takes")
	began := time.Now()
	g.run("kill", "-STOP", pid)
	pid = g.served(pid, "hand")
	if t := time.Since(began); t < 3*time.Second {
		g.Errorf("the daemon was replaced after %v", t)
	}
	for _, words := range []string{"Watchdog timeout", "SIGABRT", "goroutine "} {
		if out, err := g.try("journalctl", "-b", "-u", "holdfast.service", "--no-pager", "-o", "cat", "-n", "1", "-g", words); err != nil || !strings.Contains(out, words) {
			g.Errorf("the journal doesn't say %q: %s", words, out)
		}
	}

	g.Log("stopped and continued")
	g.run("kill", "-STOP", pid)
	time.Sleep(time.Second)
	g.run("kill", "-CONT", pid)
	n := l.n
	g.until("some progress", func() bool { return l.n > n+5 })
	if g.unit("MainPID") != pid {
		g.Error("the daemon did not survive a short stop")
	}

	g.Log("killed for its memory")
	// Which the kernel would not do by itself: it is to find it the worst of all.
	g.write("/proc/"+pid+"/oom_score_adj", "1000")
	g.write("/proc/sysrq-trigger", "f")
	pid = g.served(pid, "hand")
	if log := g.run("dmesg"); !regexp.MustCompile(`Out of memory: Killed process \d+ \(holdfast\)`).MatchString(log) {
		g.Errorf("the kernel did not kill it")
	}
	if score := g.read("/proc/" + pid + "/oom_score_adj"); score != "-1000\n" {
		g.Errorf("the next daemon has oom_score_adj %s", score)
	}
	g.end(l)
	quiesced(g, pid)
	restart(g)
	upgrade(g)
}

// restart is not the way to do it, but harms nobody: what is in use when the daemon's
// patience ends waits for the next one.
func restart(g guest) {
	g.write("/etc/default/holdfast", "HOLDFAST_OPTIONS=\"--stop-timeout 2s\"\n")
	pid := g.unit("MainPID")
	g.run("kill", "-9", pid)
	pid = g.served(pid, "hand")
	l := g.load(byHand + "/load3")
	g.run("systemctl", "restart", "holdfast.service")
	g.served(pid, "hand")
	n := l.n
	g.until("some progress", func() bool { return l.n > n+5 })
	g.end(l)
	g.run("rm", "/etc/default/holdfast")
	g.run("systemctl", "restart", "holdfast.service")
}

// quiesced: while a device has no server, udev doesn't wait for it, and its links stay.
func quiesced(g guest, pid string) {
	g.write("/run/systemd/system/holdfast.service.d/test.conf", "[Service]\nRestartSec=1h\n")
	g.run("systemctl", "daemon-reload")
	g.run("kill", "-9", pid)
	g.until("systemd's notice", func() bool { return g.unit("SubState") == "auto-restart" })
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
	if g.unit("SubState") != "auto-restart" {
		g.Error("the device was not without a server for all that time")
	}
	g.run("rm", "/run/systemd/system/holdfast.service.d/test.conf")
	g.run("systemctl", "daemon-reload")
	g.run("systemctl", "restart", "holdfast.service")
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

// upgrade: reload moves the devices to another process, which systemd then looks after.
func upgrade(g guest) {
	l := g.load(byHand + "/load2")
	pid := g.unit("MainPID")
	for range 2 {
		g.run("systemctl", "reload", "holdfast.service")
		pid = g.served(pid, "hand")
		n := l.n
		g.until("some progress", func() bool { return l.n > n+5 })
	}
	g.run("holdfast", "list") // at the same socket
	g.run("kill", "-9", pid)
	g.served(pid, "hand")
	g.end(l)
	g.run("holdfast", "list")
}
