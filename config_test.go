package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// idleHost is a host whose raft runs and elects nobody: it is in no configuration.
func idleHost(t *testing.T) *keyringtest.Host {
	t.Helper()
	var hosts []*keyringtest.Host
	h := keyringtest.NewHost(t, "idle", &hosts)
	h.FSM = keyring.NewFSM()
	h.Run(t, h.FSM)
	return h
}

// refused opens a keyring that must not open.
func refused(t *testing.T, cfg keyring.Config) error {
	t.Helper()
	k, err := keyring.Open(t.Context(), cfg)
	if err == nil {
		t.Error("opened")
		if err := k.Close(); err != nil {
			t.Error(err)
		}
		return errors.New("")
	}
	if k != nil {
		t.Error("a keyring and an error")
	}
	return err
}

func TestOpenSaysAllThatIsWrongAtOnce(t *testing.T) {
	err := refused(t, keyring.Config{
		Rotation: keyring.RotationPolicy{Every: time.Hour, Lead: time.Hour},
		Tokens:   keyring.TokenPolicy{Algorithm: "none"},
		OldKEKs:  []keyring.KEK{nil},
	})
	for _, what := range []string{"Dir", "ID", "Raft", "FSM", "KEKs is empty", "KEK 0 is nil", "Lead", `"none"`} {
		if !strings.Contains(err.Error(), what) {
			t.Errorf("the error does not speak of %s: %v", what, err)
		}
	}
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	h := idleHost(t)
	inline := keyring.InlineKEK()
	for want, change := range map[string]func(*keyring.Config){
		"Dir is empty": func(c *keyring.Config) { c.Dir = "" },
		"Raft is nil":  func(c *keyring.Config) { c.Raft = nil },
		"FSM is nil":   func(c *keyring.Config) { c.FSM = nil },
		"ID is empty":  func(c *keyring.Config) { c.ID = "" },
		"ID is empty, longer than 255 bytes": func(c *keyring.Config) {
			c.ID = raft.ServerID(strings.Repeat("x", 256))
		},
		"or not UTF-8":                  func(c *keyring.Config) { c.ID = "\xff" },
		"KEKs is empty":                 func(c *keyring.Config) { c.KEKs = nil },
		"KEK 1 is nil":                  func(c *keyring.Config) { c.KEKs = []keyring.KEK{inline, nil} },
		"KEK inline is named twice":     func(c *keyring.Config) { c.KEKs = []keyring.KEK{inline, inline} },
		"KEK 0: the ID":                 func(c *keyring.Config) { c.KEKs = []keyring.KEK{kektest.New("")} },
		"KEK 1: the ID":                 func(c *keyring.Config) { c.OldKEKs = []keyring.KEK{kektest.New("tab\t")} },
		"KEK 0: the ID is not 1 to 128": func(c *keyring.Config) { c.KEKs = []keyring.KEK{kektest.New(strings.Repeat("x", 129))} },
		"KEK 0: the ID is not":          func(c *keyring.Config) { c.KEKs = []keyring.KEK{kektest.New("Schlüssel")} },
		"17 KEKs, at most 16": func(c *keyring.Config) {
			c.KEKs = nil
			for i := range 17 {
				c.KEKs = append(c.KEKs, kektest.New(fmt.Sprint(i)))
			}
		},
		"Rotation.Lead":                        func(c *keyring.Config) { c.Rotation.Lead = -1 },
		"Rotation.Lead 1h0m0s":                 func(c *keyring.Config) { c.Rotation = keyring.RotationPolicy{Every: time.Hour, Lead: time.Hour} },
		"Tokens.Algorithm":                     func(c *keyring.Config) { c.Tokens.Algorithm = "HS256" },
		"Tokens.MaxTTL -1h":                    func(c *keyring.Config) { c.Tokens.MaxTTL = -time.Hour },
		"Tokens.MaxTTL 999ms":                  func(c *keyring.Config) { c.Tokens.MaxTTL = 999 * time.Millisecond },
		"Tokens.Leeway -1ns":                   func(c *keyring.Config) { c.Tokens.Leeway = -1 },
		`Tokens.Issuer "myservice"`:            func(c *keyring.Config) { c.Tokens.Issuer = "myservice" },
		`Tokens.Issuer "https://"`:             func(c *keyring.Config) { c.Tokens.Issuer = "https://" },
		`"ftp://example.com"`:                  func(c *keyring.Config) { c.Tokens.Issuer = "ftp://example.com" },
		`"//example.com"`:                      func(c *keyring.Config) { c.Tokens.Issuer = "//example.com" },
		`"https://example.com?a=b"`:            func(c *keyring.Config) { c.Tokens.Issuer = "https://example.com?a=b" },
		`"https://example.com/#"`:              func(c *keyring.Config) { c.Tokens.Issuer = "https://example.com/#" },
		`"https://me@example.com"`:             func(c *keyring.Config) { c.Tokens.Issuer = "https://me@example.com" },
		`"https://example.com/\x7f`:            func(c *keyring.Config) { c.Tokens.Issuer = "https://example.com/\x7f" },
		`AcceptIssuers: "myservice"`:           func(c *keyring.Config) { c.Tokens.AcceptIssuers = []string{"https://a.example", "myservice"} },
		`AcceptIssuers: "https://b.example?x"`: func(c *keyring.Config) { c.Tokens.AcceptIssuers = []string{"https://b.example?x"} },
		"AcceptIssuers are more than 16":       func(c *keyring.Config) { c.Tokens.AcceptIssuers = slices.Repeat([]string{"https://a.example"}, 17) },
		"or longer than 1500 bytes": func(c *keyring.Config) {
			c.Tokens.AcceptIssuers = []string{"https://a.example/" + strings.Repeat("x", 1483)}
		},
		`Tokens.JWKSURL "jwks.json"`:       func(c *keyring.Config) { c.Tokens.JWKSURL = "jwks.json" },
		`Tokens.JWKSURL "https://a/#keys"`: func(c *keyring.Config) { c.Tokens.JWKSURL = "https://a/#keys" },
		"URL of at most 1500 bytes":        func(c *keyring.Config) { c.Tokens.JWKSURL = "https://a/" + strings.Repeat("x", 1491) },
		`"eddsa"`:                          func(c *keyring.Config) { c.Tokens.Algorithm = "eddsa" },
	} {
		cfg := h.InDir(filepath.Join(t.TempDir(), "never"))
		change(&cfg)
		if err := refused(t, cfg); !strings.Contains(err.Error(), strings.TrimSuffix(want, ", old")) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := os.Stat(cfg.Dir); cfg.Dir != "" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the directory was made all the same", want)
		}
	}
}

const (
	day  = 24 * time.Hour
	year = 365 * day
)

// durations are the times of a configuration, by the names that errors call them, and the longest that each may be.
var durations = map[string]struct {
	of      func(*keyring.Config) *time.Duration
	longest time.Duration
}{
	"Rotation.Every":  {func(c *keyring.Config) *time.Duration { return &c.Rotation.Every }, 100 * year},
	"Rotation.Lead":   {func(c *keyring.Config) *time.Duration { return &c.Rotation.Lead }, 100*year - 1},
	"Rotation.Undo":   {func(c *keyring.Config) *time.Duration { return &c.Rotation.Undo }, 100 * year},
	"Rotation.Retain": {func(c *keyring.Config) *time.Duration { return &c.Rotation.Retain }, 100 * year},
	"Tokens.MaxTTL":   {func(c *keyring.Config) *time.Duration { return &c.Tokens.MaxTTL }, 100 * year},
	"Tokens.Leeway":   {func(c *keyring.Config) *time.Duration { return &c.Tokens.Leeway }, day},
	"RekeyGrace":      {func(c *keyring.Config) *time.Duration { return &c.RekeyGrace }, 100 * year},
	"MetricsEvery":    {func(c *keyring.Config) *time.Duration { return &c.MetricsEvery }, 100 * year},
}

// TestOpenRefusesTimesWithoutAUnit, all of them in one error.
func TestOpenRefusesTimesWithoutAUnit(t *testing.T) {
	h := idleHost(t)
	for _, number := range []time.Duration{1, 30, 86400, 999999999} {
		cfg := h.InDir(filepath.Join(t.TempDir(), "never"))
		cfg.Data = keyring.NoData{}
		for _, d := range durations {
			*d.of(&cfg) = number
		}
		err := refused(t, cfg)
		for name := range durations {
			if want := fmt.Sprintf("%s %v is less than a second: a number without a unit is nanoseconds", name, number); !strings.Contains(err.Error(), want) {
				t.Errorf("%d: the error does not say %q: %v", number, want, err)
			}
		}
	}
}

// TestOpenRefusesTimesThatAreTooLong for sums of them.
func TestOpenRefusesTimesThatAreTooLong(t *testing.T) {
	h := idleHost(t)
	for name, d := range durations {
		for _, long := range []time.Duration{d.longest + 1, math.MaxInt64 - 1, math.MaxInt64} {
			cfg := h.InDir(filepath.Join(t.TempDir(), "never"))
			cfg.Data, cfg.Rotation.Every = keyring.NoData{}, 100*year
			*d.of(&cfg) = long
			if err := refused(t, cfg); !strings.Contains(err.Error(), name+" ") {
				t.Errorf("%s %v: %v", name, long, err)
			}
		}
	}
	cfg := h.InDir(filepath.Join(t.TempDir(), "long"))
	cfg.Data = keyring.NoData{}
	for _, d := range durations {
		*d.of(&cfg) = d.longest
	}
	k, err := keyring.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenTakesTheLimits(t *testing.T) {
	h := idleHost(t)
	cfg := h.InDir(t.TempDir())
	cfg.ID = raft.ServerID(strings.Repeat("x", 255))
	cfg.KEKs = nil
	for i := range 16 {
		cfg.KEKs = append(cfg.KEKs, kektest.New(fmt.Sprint(i, strings.Repeat("~", 120))))
	}
	cfg.OldKEKs = []keyring.KEK{kektest.New("old 1"), kektest.New("old 2")}
	cfg.Rotation = keyring.RotationPolicy{Every: -1, Lead: time.Hour}
	cfg.Tokens = keyring.TokenPolicy{
		Issuer: "http://localhost:8080/a/b/", MaxTTL: time.Second, Leeway: time.Second,
		AcceptIssuers: append(slices.Repeat([]string{""}, 15), "https://a.example/"+strings.Repeat("x", 1482)), JWKSURL: "https://a/?" + strings.Repeat("&", 1489),
	}
	k, err := keyring.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenWithoutTransportIsForAServerAlone(t *testing.T) {
	for n, ok := range map[int]bool{1: true, 2: false} {
		hosts := keyringtest.NewHosts(t, n)
		h := hosts[0]
		h.FSM = keyring.NewFSM()
		h.Run(t, h.FSM)
		cfg := h.InDir(t.TempDir())
		cfg.Transport = nil
		k, err := keyring.Open(t.Context(), cfg)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "Transport is nil") {
			t.Errorf("%d servers: %v", n, err)
		}
		if k != nil {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSecondOpenOfADirectoryIsRefused(t *testing.T) {
	h := idleHost(t)
	dir := filepath.Join(t.TempDir(), "a", "keystore")
	first, err := keyring.Open(t.Context(), h.InDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, link} {
		if err := refused(t, h.InDir(path)); !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := keyring.Open(t.Context(), h.InDir(dir))
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestDirectoryThatCannotBeUsedIsNamed(t *testing.T) {
	h := idleHost(t)
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	readOnly := filepath.Join(base, "read-only")
	if err := os.Mkdir(readOnly, 0o500); err != nil {
		t.Fatal(err)
	}
	dirs := []string{file, filepath.Join(file, "below"), "/dev/null", "/proc/keyring"}
	if os.Geteuid() != 0 { // root may write everywhere, and owns all that is not another's
		dirs = append(dirs, filepath.Join(readOnly, "keystore"), "/")
	}
	for _, dir := range dirs {
		if err := refused(t, h.InDir(dir)); !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: the error does not name it: %v", dir, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "content" {
		t.Errorf("the file in the way: %q, %v", b, err)
	}
}

func TestDirectoryIsThisUsersAlone(t *testing.T) {
	h := idleHost(t)
	dir := filepath.Join(t.TempDir(), "open to all")
	if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	k, err := keyring.Open(t.Context(), h.InDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || !slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "keystore.id" }) {
		t.Errorf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
}

// TestFailedOpenGivesTheDirectoryBack: what failed must not keep the next one out.
func TestFailedOpenGivesTheDirectoryBack(t *testing.T) {
	h := idleHost(t)
	dir := t.TempDir()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := keyring.Open(ended, h.InDir(dir)); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), dir) {
		t.Errorf("with a context that has ended: %v", err)
	}
	k, err := keyring.Open(t.Context(), h.InDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

// TestRestoreOptionsSayAllThatIsWrong, to a host that asks before it does anything else.
func TestRestoreOptionsSayAllThatIsWrong(t *testing.T) {
	bad := keyring.RestoreOptions{MaxBytes: -1}
	err := bad.Check()
	for _, want := range []string{"Dir", "KEKs", "Identities", "MaxBytes", "Unauthenticated"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something about %s", err, want)
		}
	}
	backup := strings.NewReader("a backup")
	if _, got := keyring.Restore(t.Context(), backup, bad); got == nil || !strings.Contains(got.Error(), err.Error()) {
		t.Errorf("Restore says %v, Check says %v", got, err)
	}
	if backup.Len() < len("a backup") {
		t.Error("Restore has read the backup")
	}
	good := keyring.RestoreOptions{
		Dir: filepath.Join(t.TempDir(), "keystore"), KEKs: []keyring.KEK{kektest.NewDown("broken")},
		Identities: []age.Identity{kektest.Identity(t)}, Unauthenticated: true,
	}
	if err := good.Check(); err != nil { // nothing has asked the KEK
		t.Error(err)
	}
}

// TestRecoverKeysRefusesABadConfigurationFirst: raft is not recovered, and no directory is made.
func TestRecoverKeysRefusesABadConfigurationFirst(t *testing.T) {
	for name, change := range map[string]func(*keyring.Config){
		"no Dir":       func(c *keyring.Config) { c.Dir = "" },
		"no FSM":       func(c *keyring.Config) { c.FSM = nil },
		"no KEKs":      func(c *keyring.Config) { c.KEKs = nil },
		"a KEK of nil": func(c *keyring.Config) { c.OldKEKs = []keyring.KEK{nil} },
	} {
		dir := filepath.Join(t.TempDir(), "keystore")
		cfg := keyring.Config{Dir: dir, FSM: keyring.NewFSM(), KEKs: []keyring.KEK{keyring.InlineKEK()}}
		change(&cfg)
		recovered := false
		_, err := keyring.RecoverKeys(t.Context(), cfg, func() error { recovered = true; return nil })
		if err == nil || recovered {
			t.Errorf("%s: %v, raft is recovered: %t", name, err, recovered)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a directory, %v", name, err)
		}
	}
}
