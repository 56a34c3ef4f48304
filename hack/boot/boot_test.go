package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A step is a part of the story that runs in one boot.
type step struct {
	name string
	do   func(guest)
}

// story is told in boots.
var story = [][]step{
	{{"install", install}, {"launch", launchAll}, {"create", create}, {"kill", kill}, {"stop", stop}, {"image elsewhere", elsewhere}, {"down", down}},
	{{"launched", launchedAtBoot}, {"back", back}, {"images without their file system", missing}, {"storage from the network", network}, {"down", down}},
	{{"back", back}},
}

// control is told instead with HOLDFAST_BOOT_CONTROL set: units that are ordered as one would
// at first, and what comes of it.
var control = [][]step{
	{{"install", install}, {"create", create}, {"wrong order", misorder}, {"down", down}},
	{{"back", trouble}},
}

// launcher is told with HOLDFAST_BOOT_LAUNCH set, for who has changed nothing else: a part of story.
var launcher = [][]step{
	{{"units", units}, {"launch", launchAll}, {"reboot", guest.reboot}},
	{{"launched", launchedAtBoot}},
}

// TestBoot tells it.
func TestBoot(t *testing.T) {
	g := needSystemd(t)
	story := story
	if os.Getenv("HOLDFAST_BOOT_CONTROL") != "" {
		story = control
	} else if os.Getenv("HOLDFAST_BOOT_LAUNCH") != "" {
		story = launcher
	}
	phase := g.phase()
	if phase >= len(story) {
		t.Fatalf("boot %d of %d", phase+1, len(story))
	}
	for _, s := range story[phase] {
		if !t.Run(fmt.Sprintf("boot %d, %s", phase+1, s.name), func(t *testing.T) { s.do(guest{t}) }) {
			return
		}
	}
}

// makeInstall does not build again: there may be no Go here, and the build would be the guest's slow one.
func (g guest) makeInstall() {
	g.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		g.Fatal(err)
	}
	for _, program := range []string{"holdfast", "holdfast-serve"} {
		if _, err := os.Stat(root + "/bin/" + program); err != nil {
			g.Fatalf("%v: make build", err)
		}
	}
	g.run("make", "-s", "-C", root, "-o", "build", "install")
}

// install does what README tells, and has a file system for the images.
func install(g guest) {
	g.makeInstall()
	g.run("mkfs.ext4", "-q", "/dev/vdb")
	g.write("/etc/fstab", "/dev/vdb /srv ext4 defaults 0 2\n")
	g.run("systemctl", "daemon-reload")
	g.run("mount", "/srv")
	g.run("modprobe", "ublk_drv")
	g.run("systemctl", "enable", "--now", "holdfast")
	if text := g.run("systemd-analyze", "verify", "--man=no", "holdfast.service", "holdfast.socket", "holdfast-device@x.service", "holdfast.target", "holdfast.slice", "holdfast-shutdown.service"); text != "" {
		g.Errorf("systemd complains about the units: %s", text)
	}
	if state := g.run("systemctl", "is-enabled", "holdfast.socket"); state != "enabled" {
		g.Errorf("the socket is %s", state)
	}
	if max := g.read("/sys/module/ublk_drv/parameters/ublks_max"); strings.TrimSpace(max) != "4096" {
		g.Errorf("ublks_max is %s", max)
	}
	pid := g.unit("MainPID")
	// What hardening must not do, and what it must.
	if a, b := g.run("readlink", "/proc/1/ns/mnt"), g.run("readlink", "/proc/"+pid+"/ns/mnt"); a != b {
		g.Errorf("the manager is in a mount namespace of its own: %s and %s", a, b)
	}
	if v := g.read("/run/holdfast/sys/module/parameters/standby_check"); strings.TrimSpace(v) != "0" {
		g.Errorf("the attribute tree says %q", v)
	}
	if v := g.read("/proc/" + pid + "/oom_score_adj"); v != "-900\n" {
		g.Errorf("oom_score_adj is %s", v)
	}
	if status := g.read("/proc/" + pid + "/status"); !regexp.MustCompile(`(?m)^Seccomp:\s+2$`).MatchString(status) {
		g.Errorf("no seccomp:\n%s", status)
	}
	if fi, err := os.Stat("/run/holdfast/control.sock"); err != nil || fi.Mode().Perm() != 0o600 {
		g.Errorf("%v, %v", fi, err)
	}
	// The socket is systemd's: who asks while there is no manager gets one.
	g.run("systemctl", "stop", "holdfast.service")
	g.run("holdfast", "list")
	if again := g.unit("MainPID"); again == pid || again == "0" {
		g.Errorf("the main process was %s, and is %s after a call at the socket", pid, again)
	}
}

// The devices and where their file systems are mounted.
const (
	byHand  = "/mnt/by-hand"
	inFstab = "/mnt/in-fstab"
	netdev  = "/mnt/netdev"
)

func create(g guest) {
	fstab := g.read("/etc/fstab")
	for name, where := range map[string]string{"hand": byHand, "plain": inFstab, "net": netdev} {
		image := "/srv/" + name + ".hds"
		g.run("holdfast", "image", "create", "--size", "256M", image)
		g.run("holdfast", "create", name, "--persist", "--image", image)
		link := "/dev/holdfast/" + name
		g.until(link, func() bool { _, err := os.Stat(link); return err == nil })
		g.run("mkfs.ext4", "-q", "-L", name, link)
		g.run("mkdir", "-p", where)
		switch name {
		case "plain":
			fstab += fmt.Sprintf("%s %s ext4 defaults 0 2\n", link, where)
		case "net":
			fstab += fmt.Sprintf("%s %s ext4 _netdev 0 2\n", link, where)
		}
	}
	g.write("/etc/fstab", fstab)
	g.run("systemctl", "daemon-reload")
	for _, where := range []string{inFstab, netdev} {
		g.run("mount", where)
	}
	g.run("mount", "/dev/holdfast/hand", byHand)
	g.protected("hand")
	for _, unit := range []string{serverUnit("hand"), "holdfast.target"} {
		if state := g.run("systemctl", "is-enabled", unit); state != "enabled" {
			g.Errorf("%s is %s", unit, state)
		}
	}
	if mounts := g.server("hand", "RequiresMountsFor"); !strings.Contains(mounts, "/srv/hand.hds") {
		g.Errorf("the server requires mounts for %q", mounts)
	}
	// udev has seen what mkfs wrote.
	g.until("/dev/disk/by-label", func() bool { _, err := os.Stat("/dev/disk/by-label/hand"); return err == nil })
}

// protected sees that a device's server is: from other programs' faults, from a lack of memory, and from its own.
func (g guest) protected(name string) {
	g.Helper()
	pid := g.server(name, "MainPID")
	if a, b := g.run("readlink", "/proc/1/ns/mnt"), g.run("readlink", "/proc/"+pid+"/ns/mnt"); a != b {
		g.Errorf("the server is in a mount namespace of its own: %s and %s", a, b)
	}
	if v := g.read("/proc/" + pid + "/oom_score_adj"); v != "-1000\n" {
		g.Errorf("oom_score_adj is %s", v)
	}
	status := g.read("/proc/" + pid + "/status")
	if !regexp.MustCompile(`(?m)^Seccomp:\s+2$`).MatchString(status) || regexp.MustCompile(`(?m)^VmLck:\s+0 kB$`).MatchString(status) {
		g.Errorf("no seccomp, or nothing locked:\n%s", status)
	}
}

// down reboots with file systems mounted, and files in them that nobody has synced.
func down(g guest) {
	for _, where := range []string{byHand, inFstab, netdev} {
		g.run("sh", "-c", `cd "$0" && head -c 20000000 /dev/urandom >data && sha256sum data >sum && cat sum >>/var/lib/holdfast-boot.sums`, where)
	}
	g.run("sync", "/var/lib/holdfast-boot.sums")
	g.reboot()
}

// misorder has servers start after local file systems, and so end before them: those that
// were mounted by hand wait for the server's end, and the server for theirs.
func misorder(g guest) {
	// Below /run: the next boot is in order again.
	g.write("/run/systemd/system/holdfast-device@.service.d/control.conf", "[Unit]\nAfter=local-fs.target\n[Service]\nEnvironment=HOLDFAST_STOP_TIMEOUT=3s\n")
	g.run("systemctl", "daemon-reload")
	for _, name := range []string{"hand", "plain", "net"} {
		pid := g.server(name, "MainPID")
		g.run("kill", "-9", pid)
		g.served(pid, name)
	}
}

// network has the images' file system, and with it those on our devices, be one that needs the
// network, as far as systemd knows.
func network(g guest) {
	g.write("/etc/fstab", strings.NewReplacer("ext4 defaults", "ext4 _netdev").Replace(g.read("/etc/fstab")))
	g.run("umount", byHand)
	g.run("mount", "-o", "_netdev", "/dev/holdfast/hand", byHand)
	g.run("systemctl", "daemon-reload")
}

// away is a file system with an image that will not be there at the next boot.
const away = "/var/lib/holdfast-away"

func elsewhere(g guest) {
	g.run("truncate", "-s", "64M", away)
	g.run("mkfs.ext4", "-q", away)
	g.write("/etc/fstab", g.read("/etc/fstab")+away+" /mnt/away ext4 noauto,loop 0 0\n")
	g.run("mkdir", "-p", "/mnt/away")
	g.run("systemctl", "daemon-reload")
	g.run("mount", "/mnt/away")
	g.run("holdfast", "image", "create", "--size", "16M", "/mnt/away/i.hds")
	g.run("holdfast", "create", "away", "--persist", "--image", "/mnt/away/i.hds")
	g.run("mv", away, away+".moved")
}

// missing is the boot after. The server comes when the file system does, without anybody starting it.
func missing(g guest) {
	if state := g.server("away", "ActiveState"); state != "inactive" {
		g.Errorf("the server is %s without its image's file system", state)
	}
	if state := g.state("away"); state == "" || state == "live" {
		g.Errorf("the device is %q", state)
	}
	g.run("mv", away+".moved", away)
	g.served("0", "away")
	g.run("mountpoint", "/mnt/away")
	// One that was stopped by hand stays so. The manager has then looked more than once.
	g.run("systemctl", "stop", serverUnit("away"))
	time.Sleep(25 * time.Second)
	if state := g.server("away", "ActiveState"); state != "inactive" {
		g.Errorf("the server that was stopped is %s", state)
	}
	g.run("holdfast", "remove", "away")
	g.run("umount", "/mnt/away")
}
