package scenarios_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// TestKeystoreThatIsNotInItsPlace is one problem within a minute, while what is in memory works. It goes by itself when the
// directory is back. A server that starts on an empty directory in place of it says so, too.
func TestKeystoreThatIsNotInItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, v, dir := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}, filepath.Join(t.TempDir(), "keystore")
		h.MustOpenIn(t, dir)
		v.Seal(t, h)
		time.Sleep(time.Hour) // nothing is due
		kinds := func() (all []keyring.ProblemKind) {
			for _, p := range h.Status(t).Problems {
				all = append(all, p.Kind)
			}
			slices.Sort(all)
			return all
		}
		before := kinds()
		if err := errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		want := append(slices.Clone(before), keyring.ProblemMoved)
		slices.Sort(want)
		if got := kinds(); !slices.Equal(got, want) {
			t.Errorf("moved away: %v, before: %v", got, before)
		}
		v.Seal(t, h)
		v.CheckOpens(t, h.Keyring, "moved away")
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("in the wrong directory: %v, %v", left, err)
		}
		if err := errors.Join(os.Remove(dir), os.Rename(dir+".old", dir)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := kinds(); !slices.Equal(got, before) || len(h.Status(t).Missing) > 0 {
			t.Errorf("back: %v, before: %v", got, before)
		}
		h.Stop(t)
		copyKeyFiles(t, dir, dir+".restored")
		h.MustOpenIn(t, dir+".restored") // another keystore, with every key: as Restore makes one
		time.Sleep(time.Minute)
		if got := kinds(); !slices.Equal(got, before) {
			t.Errorf("a directory with copies of the files: %v, before: %v", got, before)
		}
		h.Stop(t)
		if err := h.OpenIn(t, dir+".new"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := kinds(); !slices.Contains(got, keyring.ProblemKeystore) {
			t.Errorf("an empty directory: %v", got)
		}
		h.Stop(t)
		h.MustOpenIn(t, dir)
		time.Sleep(time.Minute)
		if got := kinds(); !slices.Equal(got, before) {
			t.Errorf("the right directory again: %v, before: %v", got, before)
		}
		h.Stop(t)
	})
}

// TestRestoredKeystoreIsNotAnotherOneWhileItsKEKIsAway: its files are there, and open later.
func TestRestoredKeystoreIsNotAnotherOneWhileItsKEKIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, v, dir := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}, filepath.Join(t.TempDir(), "keystore")
		kms := kektest.New("kms")
		withKMS := func(c *keyring.Config) { c.KEKs = []keyring.KEK{kms} }
		h.MustOpenIn(t, dir, withKMS)
		v.Seal(t, h)
		h.Stop(t)
		copyKeyFiles(t, dir, dir+".restored")
		kms.Set(func(k *kektest.KMS) { k.Err = errors.New("it is down") })
		if err := h.OpenIn(t, dir+".restored", withKMS); err != nil {
			t.Fatal(err)
		}
		for _, now := range []struct {
			when    string
			missing int
			set     func(*kektest.KMS)
		}{{"while the KEK is away", 1, nil}, {"when the KEK answers", 0, kektest.Answers}} {
			if now.set != nil {
				kms.Set(now.set)
			}
			time.Sleep(2 * time.Minute)
			st := h.Status(t)
			another := func(p keyring.Problem) bool { return p.Kind == keyring.ProblemKeystore }
			if slices.ContainsFunc(st.Problems, another) || len(st.Missing) != now.missing {
				t.Errorf("%s: %v, missing %v", now.when, st.Problems, st.Missing)
			}
		}
		v.CheckOpens(t, h.Keyring, "when the KEK answers")
		h.Stop(t)
	})
}

// copyKeyFiles copies the key files of a keystore, and not its ID.
func copyKeyFiles(t *testing.T, from, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(from, "*.nks.json"))
	if err := errors.Join(err, os.Mkdir(to, 0o700)); err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err := errors.Join(err, os.WriteFile(filepath.Join(to, filepath.Base(file)), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeyFileThatIsDeletedIsWrittenAgain within a minute, while the server runs, so that the next start has the key. While it
// can't be written, Status says that it is gone, and the key is not held.
func TestKeyFileThatIsDeletedIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, v, dir := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}, filepath.Join(t.TempDir(), "keystore")
		kms := kektest.New("kms")
		h.MustOpenIn(t, dir, func(c *keyring.Config) { c.KEKs = []keyring.KEK{kms} })
		v.Seal(t, h)
		time.Sleep(time.Hour) // nothing is due
		before, file := len(h.Status(t).Problems), nks.FileName(h.Status(t).Active)
		deleted := func(when string) {
			t.Helper()
			if err := os.Remove(filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			v.CheckOpens(t, h.Keyring, when)
		}
		written := func(when string) {
			t.Helper()
			st := h.Status(t)
			if _, err := os.Stat(filepath.Join(dir, file)); err != nil || len(st.Missing) > 0 || len(st.Problems) != before {
				t.Errorf("%s: %v, missing %v, %v", when, err, st.Missing, st.Problems)
			}
		}
		deleted("deleted")
		written("deleted")
		kms.Set(func(k *kektest.KMS) { k.Err = errors.New("it is down") })
		deleted("while the KEK is down")
		st := h.Status(t)
		if !slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
			return p.Kind == keyring.ProblemWrite && p.Severity == keyring.SeverityCritical && strings.Contains(p.Detail, file+" is gone")
		}) || len(st.Missing) != 1 {
			t.Errorf("while the KEK is down: %v, missing %v", st.Problems, st.Missing)
		}
		kms.Set(kektest.Answers)
		time.Sleep(2 * time.Minute)
		written("when the KEK answers again")
		h.Stop(t)
	})
}
