package boot

import (
	"os"
	"regexp"
	"strings"
)

// troubles are what must not be said on the way down. The modules' directory is the
// harness's own.
var troubles = regexp.MustCompile(`I/O error|EXT4-fs (error|warning)|JBD2:|Buffer I/O|blocked for more than|Failed unmounting .*(/srv|/mnt)|timed out|SIGKILL.*holdfast|Failed .*holdfast`)

// back is the boot after one that went down with file systems mounted on our devices.
func back(g guest) {
	down := g.wayDown()
	for _, line := range told(down) {
		g.Errorf("on the way down: %s", line)
	}
	order(g, down)
	if out, _ := g.try("journalctl", "-b", "--no-pager", "-o", "cat", "-g", "ordering cycle"); strings.Contains(out, "ordering cycle") {
		g.Errorf("units order each other in circles:\n%s", out)
	}
	// The servers ended by themselves and had nothing to complain of.
	for _, name := range []string{"hand", "plain", "net"} {
		last := g.run("journalctl", "-b", "-1", "-u", serverUnit(name), "-o", "cat", "--no-pager", "-n", "20")
		if !strings.Contains(last, "Deactivated successfully") || !strings.Contains(last, `"message":"stopping"`) {
			g.Errorf("the last words of the server of %s before the reboot:\n%s", name, last)
		}
	}
	// Those in fstab are mounted, or we would not be here; the other is there to be mounted.
	for _, where := range []string{inFstab, netdev} {
		if out, err := g.try("mountpoint", where); err != nil {
			g.Errorf("%s: %v", out, err)
		}
	}
	g.until("/dev/holdfast/hand", func() bool { _, err := os.Stat("/dev/holdfast/hand"); return err == nil })
	if out := g.run("dumpe2fs", "-h", "/dev/holdfast/hand"); !regexp.MustCompile(`Filesystem state:\s+clean`).MatchString(out) || strings.Contains(out, "needs_recovery") {
		g.Errorf("the file system was not unmounted before its device went:\n%s", out)
	}
	g.run("e2fsck", "-fn", "/dev/holdfast/hand")
	g.run("mount", "/dev/holdfast/hand", byHand)
	for _, where := range []string{byHand, inFstab, netdev} {
		g.run("sh", "-c", `cd "$0" && sha256sum -c sum`, where)
	}
	sums := g.read("/var/lib/holdfast-boot.sums")
	for _, where := range []string{byHand, inFstab, netdev} {
		if !strings.Contains(sums, g.read(where+"/sum")) {
			g.Errorf("%s has other data than was written there", where)
		}
	}
}

// told are the lines with troubles.
func told(down string) (lines []string) {
	for line := range strings.Lines(down) {
		if troubles.MatchString(line) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// trouble is the boot after one that went down with units in the wrong order: the test
// would have seen it.
func trouble(g guest) {
	lines := told(g.wayDown())
	if len(lines) == 0 {
		g.Fatal("no trouble on the way down, with units in the wrong order")
	}
	g.Logf("%d lines, such as %s", len(lines), lines[0])
}

// order sees that file systems on our devices went before the one that has the images.
func order(g guest, down string) {
	down = regexp.MustCompile(`(?m)^.*EXT4-fs \(loop.*\n`).ReplaceAllString(down, "") // what elsewhere has mounted
	last := strings.LastIndex(down, "unmounting filesystem")
	if last < 0 {
		g.Fatal("no file system was unmounted")
	}
	line := down[strings.LastIndexByte(down[:last], '\n')+1 : last]
	if !strings.Contains(line, "(vdb)") || strings.Count(down, "EXT4-fs (ublkb") < 3 {
		g.Errorf("the last file system to be unmounted was %s, not the images'", line)
	}
}
