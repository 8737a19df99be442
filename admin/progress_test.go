package admin

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// An update is due ten times a second at most, however often something is written.
func TestProgressDrawsAtMostTenTimesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var terminal bytes.Buffer
		p := &progress{terminal: &terminal, command: "verify", size: 2000}
		for range 2000 {
			if n, err := p.Write([]byte("x")); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			time.Sleep(time.Millisecond) // virtual
		}
		lines := strings.Split(terminal.String(), eraseLine)[1:]
		if len(lines) != 20 || lines[0] != "verify: 0%" || lines[10] != "verify: 50%" || lines[19] != "verify: 95%" {
			t.Errorf("%d updates: %q", len(lines), lines)
		}
		p.end()
		if !strings.HasSuffix(terminal.String(), "95%"+eraseLine) {
			t.Error("the line is not cleared")
		}
	})
}

// A backup has no size until it is there.
func TestProgressWithoutASizeSaysHowMuch(t *testing.T) {
	var terminal bytes.Buffer
	p := &progress{terminal: &terminal, command: "backup"}
	p.end()
	if terminal.Len() > 0 {
		t.Errorf("%q before anything is written", &terminal)
	}
	p.Write(make([]byte, 1_250_000))
	if got := terminal.String(); got != eraseLine+"backup: 1.2 MB" {
		t.Errorf("%q", got)
	}
}

// A terminal is a character device. Scripts have pipes and files.
func TestProgressIsForTerminalsOnly(t *testing.T) {
	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer pipe.Close()
	if watched(device) != device {
		t.Error("nothing is drawn on a character device")
	}
	for _, w := range []io.Writer{file, pipe, &bytes.Buffer{}} {
		if watched(w) != io.Discard {
			t.Errorf("something is drawn on %T %v", w, w)
		}
	}
}

// Each command that may be long draws, and has cleared the line when it prints. Terminal and output are
// one buffer here, as they are for who watches.
func TestLongCommandsShowProgress(t *testing.T) {
	s := alone(t, nil)
	dir, identity := t.TempDir(), newIdentity(t)
	key, file, cluster := filepath.Join(dir, "key"), filepath.Join(dir, "backup"), filepath.Join(dir, "cluster")
	if err := os.WriteFile(key, []byte(identity.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var screen bytes.Buffer
	watching := cli{client: clientOf(t, s.url), out: &screen, warn: &screen, terminal: &screen}
	watching.options.RestoreArgs = "DIR ID"
	watching.options.Restore = func(ctx context.Context, args []string, r io.Reader, o keyring.RestoreOptions) (keyring.Manifest, error) {
		return node.Restore(ctx, r, node.Config{ID: raft.ServerID(args[1]), Dir: args[0], KEKs: []keyring.KEK{keyring.InlineKEK()}}, o)
	}
	for _, test := range []struct {
		command, unit string
		run           func() error
	}{
		{"backup", "MB", func() error {
			return watching.backup(t.Context(), []string{"-to", identity.Recipient().String(), file})
		}},
		{"verify", "%", func() error { return watching.verify(t.Context(), []string{"-identity", key, file}) }},
		{"restore", "%", func() error {
			return watching.restore(t.Context(), []string{"-identity", key, "-unauthenticated", cluster, "s1", file})
		}},
	} {
		screen.Reset()
		if err := test.run(); err != nil {
			t.Fatal(test.command, err)
		}
		lines := strings.Split(screen.String(), eraseLine)
		if len(lines) < 3 || !strings.HasPrefix(lines[1], test.command+": ") || !strings.HasSuffix(lines[1], test.unit) {
			t.Errorf("%s draws %q", test.command, lines)
		}
		if sum, _, _ := strings.Cut(lines[len(lines)-1], " "); len(strings.TrimSuffix(sum, ":")) != 64 {
			t.Errorf("%s says %q", test.command, lines)
		}
	}
}
