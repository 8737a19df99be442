package keyring_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// laterVersion is a key file as a later version has it, as far as this build can know.
func laterVersion(good []byte) []byte {
	return bytes.Replace(good, []byte(`"Version": 1,`), []byte(`"Version": 2,`), 1)
}

// TestKeyFileOfANewerVersionIsLeftAlone: a server that is taken back to this build keeps what the newer one has
// written, says so, and gets the key from nobody in its place. The newer build finds its file.
func TestKeyFileOfANewerVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 3)
		for _, h := range hosts {
			h.Open(t, nil)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		sealed, err := leader.Keyring.Encrypt([]byte("data"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		id, _ := keyring.CiphertextKeyID(sealed)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, k := range leader.Keyring.Keys() {
			keyringtest.AwaitHolders(leader.Keyring, k.ID, 3)
		}
		f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		name := nks.FileName(id)
		f.Stop(t)
		good := f.Disk.Bytes(name)
		f.Disk.Plant(name, 0o600, laterVersion(good))
		f.Open(t, nil)
		time.Sleep(time.Hour)
		st := f.Status(t)
		i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemNewer })
		if i < 0 || st.Problems[i].Key != id || !strings.Contains(st.Problems[i].Advice, "newer build") {
			t.Errorf("problems: %v", st.Problems)
		}
		if len(st.SetAside) > 0 || !slices.Equal(st.Missing, []keyring.KeyID{id}) || !bytes.Equal(f.Disk.Bytes(name), laterVersion(good)) {
			t.Errorf("set aside %v, missing %v, it is there: %t", st.SetAside, st.Missing, bytes.Equal(f.Disk.Bytes(name), laterVersion(good)))
		}
		if _, err := f.Keyring.Decrypt(sealed, []byte("aad")); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("decrypt: %v", err)
		}
		f.Stop(t)
		f.Disk.Plant(name, 0o600, good) // what the newer build reads
		f.Open(t, nil)
		time.Sleep(time.Minute)
		keyringtest.Sealings{id: {sealed}}.CheckOpens(t, f.Keyring, "with the build that wrote it")
	})
}

func TestInspectSaysWhichFilesAreNewer(t *testing.T) {
	dir, id := t.TempDir(), keyring.KeyID{1}
	good, _ := keyringtest.NewKeyFile(t, id, keyring.InlineKEK())
	for name, b := range map[string][]byte{nks.FileName(id): laterVersion(good), "keystore.id": []byte("v2\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := keyring.Inspect(t.Context(), dir, keyring.InlineKEK())
	if err != nil || len(reports) != 2 {
		t.Fatal(reports, err)
	}
	for _, r := range reports {
		if !errors.Is(r.Err, nks.ErrVersion) || !strings.Contains(r.Err.Error(), "start the newer build") {
			t.Errorf("%s: %v", r.Name, r.Err)
		}
	}
}
