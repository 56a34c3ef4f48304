package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"

	"holdfast/ploop"
	"holdfast/ploop/stack"
)

const mib = 1 << 20

// createImage makes an empty image by qemu-img, in the place of another.
func createImage(path string, size int64) error {
	return command("qemu-img", "create", "-q", "-f", "parallels", "-o", fmt.Sprintf("size=%d,cluster_size=%d", size, mib), path)
}

// makeImage makes a ploop image by qemu-img, so that both sides work on a file
// that is not of our own making, and fills it: every cluster is allocated.
func makeImage(path string, size int64) (err error) {
	if err := createImage(path, size); err != nil {
		return err
	}
	stack, err := stack.Open([]ploop.ImageRef{{Path: path}}, stack.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stack.Close()) }()
	b := ploop.AlignedBuffer(mib)
	for off := int64(0); off < size; off += mib {
		noise(b, off)
		if _, err := stack.WriteAt(b, off); err != nil {
			return err
		}
	}
	return nil
}

// makeRaw makes a raw file of the same content.
func makeRaw(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, mib)
	for off := int64(0); off < size; off += mib {
		noise(b, off)
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// noise fills b with what no layer below can compress or take for zeroes.
func noise(b []byte, seed int64) {
	r := rand.NewPCG(uint64(seed), 0)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
}

// command runs a program to its end; its words are the error's.
func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
