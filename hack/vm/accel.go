package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Time to user space that a boot is given. Under KVM it takes a second or two;
// a /dev/kvm that can't run a stock kernel hangs, and this is what we wait for
// it, once per boot of the host.
const (
	boundKVMProbe = 12 * time.Second
	boundKVM      = 60 * time.Second
	boundTCG      = 180 * time.Second
)

// accelChoice is the accelerator to try first.
type accelChoice struct {
	accel  accelerator
	probe  bool   // not known yet to work
	record string // where to remember the verdict, empty if it isn't to be
}

// chooseAccel decides between KVM and emulation. That /dev/kvm exists, or even
// that it can make a VM, proves nothing: in some sandboxes no kernel boots on
// it. So the first boot is a probe, and its verdict is kept until the host
// boots again.
func chooseAccel(cache string) (accelChoice, error) {
	switch v := os.Getenv("HOLDFAST_VM_ACCEL"); v {
	case "":
	case string(accelKVM), string(accelTCG):
		return accelChoice{accel: accelerator(v)}, nil
	default:
		return accelChoice{}, fmt.Errorf("HOLDFAST_VM_ACCEL=%q: want kvm or tcg", v)
	}
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return accelChoice{accel: accelTCG}, nil
	}
	dev.Close()
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return accelChoice{}, err
	}
	record := filepath.Join(cache, "accel-"+strings.TrimSpace(string(id)))
	verdict, err := os.ReadFile(record)
	switch {
	case err == nil && string(verdict) == string(accelKVM):
		return accelChoice{accel: accelKVM}, nil
	case err == nil:
		return accelChoice{accel: accelTCG}, nil
	case !errors.Is(err, os.ErrNotExist):
		return accelChoice{}, err
	}
	return accelChoice{accel: accelKVM, probe: true, record: record}, nil
}

// remember keeps the verdict and drops those of earlier boots of the host.
func (c accelChoice) remember(a accelerator) {
	if c.record == "" {
		return
	}
	old, _ := filepath.Glob(filepath.Join(filepath.Dir(c.record), "accel-*"))
	for _, f := range old {
		if f != c.record {
			os.Remove(f)
		}
	}
	if err := os.WriteFile(c.record, []byte(a), 0o644); err != nil {
		logf("could not keep the verdict on KVM: %v", err)
	}
}
