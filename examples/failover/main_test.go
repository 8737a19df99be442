package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestMain lets the test binary be a server.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// noneLeft requires that no server named in the output and no file of the run is left.
func noneLeft(t *testing.T, tmp, out string) {
	t.Helper()
	pids := regexp.MustCompile(`is process (\d+),`).FindAllStringSubmatch(out, -1)
	if len(pids) == 0 {
		t.Error("no server was started")
	}
	for _, pid := range pids {
		n, err := strconv.Atoi(pid[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is left: %v", n, err)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestEveryCiphertextOpensAfterTwoLeadersDied(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out bytes.Buffer
	err := run(t.Context(), 2, &out)
	t.Logf("\n%s", &out)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "killed with SIGKILL"); n != 2 {
		t.Errorf("%d kills", n)
	}
	open := regexp.MustCompile(`s\d      decrypts (\d+) of (\d+)`).FindAllStringSubmatch(out.String(), -1)
	if len(open) != 3 {
		t.Errorf("%d servers were asked to open the ciphertexts", len(open))
	}
	for _, o := range open {
		if o[1] != o[2] || o[1] == "0" {
			t.Errorf("%q", o[0])
		}
	}
	if !strings.Contains(out.String(), "paused 2 times: median ") {
		t.Error("no word of the client's pauses")
	}
	noneLeft(t, tmp, out.String())
}

// canceller is an output that cancels at the first mention of something.
type canceller struct {
	mu     sync.Mutex // guards below
	out    bytes.Buffer
	at     string
	cancel func()
}

func (c *canceller) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes.Contains(b, []byte(c.at)) {
		c.cancel()
	}
	return c.out.Write(b)
}

func TestInterruptLeavesNothing(t *testing.T) {
	for _, at := range []string{"s2      is process", "majority", "deleted"} {
		t.Run(at, func(t *testing.T) {
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out := &canceller{at: at, cancel: cancel}
			if err := run(ctx, 3, out); !errors.Is(err, context.Canceled) {
				t.Errorf("%v\n%s", err, &out.out)
			}
			noneLeft(t, tmp, out.out.String())
		})
	}
}
