package state

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"testing"

	"holdfast/hack/faultfs"
)

// roles are what this test's program does as another process: HOLDFAST_TEST_ROLE=ROLE with
// HOLDFAST_TEST_DIR. Each ends when its standard input does.
var roles = map[string]func(dir string){}

func TestMain(m *testing.M) {
	faultfs.Child() // storage that hangs on demand is a process of its own
	if role := os.Getenv("HOLDFAST_TEST_ROLE"); role != "" {
		roles[role](os.Getenv("HOLDFAST_TEST_DIR"))
		return
	}
	os.Exit(m.Run())
}

// process is this program in another role.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startRole(t *testing.T, role, dir string, env ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), append(env, "HOLDFAST_TEST_ROLE="+role, "HOLDFAST_TEST_DIR="+dir)...)
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	return p
}

func (p *process) line() string {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatalf("the other process ended: %v", p.out.Err())
	}
	return p.out.Text()
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}
