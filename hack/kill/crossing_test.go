package kill

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/hack/tool"
	"holdfast/ploop"
)

// TestCrossing: a host changes from the daemon that serves all devices itself, HOLDFAST_OLD_BINARY, to the programs
// under test, with its devices in use: the old daemon is killed, or it is told to upgrade and
// starts what lies where it was started from.
func TestCrossing(t *testing.T) {
	for i, way := range []string{"kill", "reload"} {
		if onOtherKernel(i) {
			continue
		}
		t.Run(way, func(t *testing.T) { crossing(t, way) })
	}
}

func crossing(t *testing.T, way string) {
	old := oldProgram(t)
	mayWait(t)
	s := makeServer(t, "--targets", "none")
	program, servers := s.program, s.serveBinary
	s.besides = true
	bin := t.TempDir()
	install := func(from, name string) {
		t.Helper()
		must(t, tool.Run("cp", from, bin+"/~"))
		must(t, os.Rename(bin+"/~", bin+"/"+name))
	}
	install(old, "holdfast")
	s.use(bin + "/holdfast")
	h := holdOn(s)

	names, disks := s.createMany("fio", 3)
	s.ok("attach", names[0], "--consumer", "hand")
	image := filepath.Join(t.TempDir(), "ext4.hds")
	must(t, ploop.Create(image, ploop.CreateOptions{Size: 128 << 20, ClusterSize: 64 << 10}))
	disk := s.ok("create", "ext4", "--image", image)
	must(t, tool.Run("mkfs.ext4", "-q", disk))
	dir := t.TempDir()
	must(t, syscall.Mount(disk, dir, "ext4", 0, "errors=remount-ro,discard"))
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	model := s.serve("model", threeDeltas(t, t.TempDir(), 8<<20, 61), 4)
	model.Rest(20 * time.Millisecond)
	var failed []*tracepoint
	for _, disk := range append(disks, disk, model.disk) {
		failed = append(failed, countRequests(t, "block_rq_error", disk))
	}
	files := writeFiles(t, dir, 2)
	v := startFio(t, 8<<20, 4, 20, disks...)
	files.advances(5)
	model.advances(50)
	s.writes(50, names...)
	standby := h.holds("held")
	if way == "kill" {
		h.dead.Dead(0) // so that the file can be opened; this ends no standby
	}

	install(program, "holdfast")
	if servers != "" {
		install(servers, "holdfast-serve")
	}
	s.use(bin + "/holdfast")
	began := time.Now()
	switch way {
	case "kill":
		s.killDaemon()
		s.start()
	case "reload":
		h.dead.Dead(0)
		before := s.process.Pid
		must(t, s.process.Signal(syscall.SIGUSR2))
		s.dies(time.Minute)
		s.started = time.Now()
		must(t, wait(time.Minute, func() error {
			info, err := s.client.Daemon(t.Context())
			if err == nil && info.PID == before {
				err = fmt.Errorf("the daemon is still process %d", before)
			}
			if err == nil {
				p, _ := os.FindProcess(info.PID)
				s.adopt(p)
			}
			return err
		}))
	}
	all := append(slices.Clone(names), "ext4", "model")
	for _, name := range all {
		s.waitServer(name)
		s.becomes(name, api.StateLive)
	}
	t.Logf("%d devices are served %v after the change", len(all), round(time.Since(began)))
	after := h.holds("held")
	if !after.Enabled || !after.Flag || after.Errno != standby.Errno ||
		!slices.Equal(after.Consumers, standby.Consumers) || !after.Since.Equal(*standby.Since) {
		t.Errorf("standby was %+v\nand is now %+v", standby, after)
	}
	h.checkIsOn()
	if d, err := s.client.Device(t.Context(), names[0]); err != nil || !slices.Equal(d.Standby.Consumers, []string{"hand"}) {
		t.Errorf("a lease by hand is gone: %+v, %v", d, err)
	}
	if s.managed() {
		if n := len(s.servers()); n != len(all)+1 {
			t.Errorf("%d servers for %d devices", n, len(all)+1)
		}
	}
	files.advances(5)
	model.advances(50)
	s.writes(50, names...)
	// From here on it is a host like any other.
	s.killServer("model")
	s.back("model")
	s.kill()
	s.start()
	for _, name := range all {
		s.waitServer(name)
		s.becomes(name, api.StateLive)
	}
	files.advances(5)
	model.advances(50)
	s.writes(50, names...)

	v.end()
	kept, _ := files.end()
	must(t, syscall.Unmount(dir, 0))
	must(t, tool.Run("fsck.ext4", "-fn", disk))
	must(t, syscall.Mount(disk, dir, "ext4", syscall.MS_RDONLY, ""))
	for name, sum := range kept {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || sha256.Sum256(text) != sum {
			t.Errorf("%s: %v, or not what was written", name, err)
		}
	}
	must(t, syscall.Unmount(dir, 0))
	for _, p := range failed {
		if n := p.hits(); n != 0 {
			t.Errorf("%s: %d requests", p.hist, n)
		}
	}
	s.remove("model", model)
	for _, name := range append(names, "ext4") {
		s.ok("remove", name)
	}
	h.finish()
	if text := s.logTail(); strings.Contains(text, "panic:") {
		t.Errorf("somebody panicked:\n%s", text)
	}
}
