package scenarios_test

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
)

// TestTroubledDiskIsNotToldAsOldKEKs: Rewrap would write to the same disk. What it could not write is
// written when the disk is.
func TestTroubledDiskIsNotToldAsOldKEKs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		err   error
		kinds []string // of operations that fail
	}{
		"full":      {syscall.ENOSPC, []string{"create", "write"}},
		"read-only": {syscall.EROFS, []string{"create", "sync", "dirsync", "rename"}},
		"failing":   {syscall.EIO, []string{"create", "write", "sync", "dirsync"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := kektest.New("a"), kektest.New("b")
				l := newLone(t, a)
				l.seal("data")
				l.old = []keyring.KEK{a}
				l.restart(b)
				keyringtest.Ready(t, l.Cluster)
				l.Disk.OnOp(func(op keyringtest.Op) (f keyringtest.Fault) {
					if slices.Contains(tt.kinds, op.Kind) {
						f.Err = tt.err
					}
					return f
				})
				if err := l.Keyring.Rewrap(t.Context()); !errors.Is(err, tt.err) {
					t.Errorf("rewrap: %v", err)
				}
				st := l.status()
				if p := saidOf(st, keyring.ProblemWrite); p == nil || !strings.Contains(p.Detail, tt.err.Error()) || saidOf(st, keyring.ProblemOldKEK) != nil {
					t.Errorf("%d on old KEKs, %v", st.OnOldKEKs, st.Problems)
				}
				l.Disk.OnOp(nil)
				time.Sleep(3 * time.Minute) // virtual
				if st := l.status(); len(butNoBackup(st.Problems)) > 0 || st.OnOldKEKs > 0 {
					t.Errorf("when the disk is written: %d on old KEKs, %v", st.OnOldKEKs, st.Problems)
				}
			})
		})
	}
}

// TestOneWrongKEKUnderManyKeysIsOneProblem, in one line that names the KEK and says how many keys there are.
func TestOneWrongKEKUnderManyKeysIsOneProblem(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		wrong func(t *testing.T) keyring.KEK
		kind  keyring.ProblemKind
		of    string
	}{
		"another one has its ID": {func(t *testing.T) keyring.KEK { return vaultNamed(t, 7) }, keyring.ProblemKEKOther, "kms"},
		"it has another ID":      {func(*testing.T) keyring.KEK { return kektest.New("other") }, keyring.ProblemKEKUnconfigured, "kms"},
		"it does not answer":     {func(*testing.T) keyring.KEK { return kektest.NewDown("kms") }, keyring.ProblemKEKAway, "kms"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLone(t, vaultNamed(t, 1))
				keyringtest.Ready(t, l.Cluster)
				for range 99 {
					if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				l.restart(tt.wrong(t))
				time.Sleep(5 * time.Minute) // virtual
				about := slices.DeleteFunc(l.status().Problems, func(p keyring.Problem) bool {
					return p.Kind == keyring.ProblemJWKS // there are 100 keys
				})
				if len(about) != 1 {
					t.Fatalf("%d problems: %v", len(about), about)
				}
				p := about[0]
				if p.Kind != tt.kind || p.KEK != tt.of || len(p.Keys) != 100 || !strings.Contains(p.String(), tt.of) ||
					!strings.Contains(p.String(), "and 99 more") || len(p.String()) > 400 {
					t.Errorf("%d keys: %s", len(p.Keys), p)
				}
			})
		})
	}
}

func vaultNamed(t *testing.T, key byte) keyring.KEK {
	v := kektest.NewVault(t, key)
	v.Name = "kms"
	return v
}

// TestServerThatIsLeftSaysWhyItIsNotReady: of three, two have stopped, and it has led, or followed, or is started alone. Within a
// minute it says so as something critical, with no second line, and so does a server whose KEK does not wrap.
func TestServerThatIsLeftSaysWhyItIsNotReady(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		led, restart, ready bool
		kinds               []keyring.ProblemKind
	}{
		"it led":      {led: true, ready: true, kinds: []keyring.ProblemKind{keyring.ProblemNoLeader}},
		"it followed": {ready: true, kinds: []keyring.ProblemKind{keyring.ProblemNoLeader}},
		"it is started alone": {restart: true, kinds: []keyring.ProblemKind{
			keyring.ProblemNoLeader, keyring.ProblemBehind}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
				left := keyringtest.Ready(t, c)
				if !tt.led {
					left = keyringtest.Follower(c)
				}
				for _, s := range c.Servers {
					if s != left {
						c.Stop(s)
					}
				}
				if tt.restart {
					c.Restart(left)
				}
				time.Sleep(time.Minute) // virtual
				checkCritical(t, left, tt.ready, tt.kinds...)
			})
		})
	}
	t.Run("its KEK does not wrap", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := kektest.New("a"), kektest.New("b")
			l := newLone(t, a, b)
			l.seal("data")
			b.Set(func(k *kektest.KMS) { k.NoWrap, k.NoUnwrap = errBroken, errBroken })
			l.restart(a, b)
			time.Sleep(time.Minute)
			checkCritical(t, l.Server, false, keyring.ProblemKEKAway)
		})
	})
}

// checkCritical wants just these problems, each of them critical, and Ready as it is.
func checkCritical(t *testing.T, s *keyringtest.Server, ready bool, kinds ...keyring.ProblemKind) {
	t.Helper()
	st := keyringtest.StatusOf(t, s)
	var said []keyring.ProblemKind
	for _, p := range st.Problems {
		if p.Kind == keyring.ProblemInlineKEK {
			continue
		}
		if said = append(said, p.Kind); p.Severity != keyring.SeverityCritical || p.Since.IsZero() || p.Advice == "" {
			t.Errorf("%s of %v: %s; %s", p.Severity, p.Since, p, p.Advice)
		}
	}
	if st.Ready != ready || !slices.Equal(said, kinds) {
		t.Errorf("ready %t, %v", st.Ready, st.Problems)
	}
}
