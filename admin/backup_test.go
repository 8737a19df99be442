package admin

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file that is there is not overwritten, and the server is not asked for what has no place.
func TestBackupOverwritesNothing(t *testing.T) {
	asked := 0
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer api.Close()
	dir := t.TempDir()
	file := filepath.Join(dir, "backup")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, api.URL, "backup", "-to", "age1", file); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := runCommand(t, api.URL, "backup", "-to", "age1", filepath.Join(dir, "none", "backup")); err == nil {
		t.Errorf("into no directory: %s", out)
	}
	if asked > 0 {
		t.Errorf("the server was asked %d times", asked)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
	wantFiles(t, dir, "backup")
}

// A crash leaves a file that is no backup. The next backup says so, and leaves it: it may be one that is being made.
func TestBackupNamesWhatOneThatWasCutOffHasLeft(t *testing.T) {
	s := alone(t, nil)
	dir := t.TempDir()
	for _, name := range []string{"backup.123.part", "backup.part", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := runCommand(t, s.url, "backup", "-to", newIdentity(t).Recipient().String(), filepath.Join(dir, "backup"))
	if err != nil {
		t.Fatal(out, err)
	}
	named := filepath.Join(dir, "backup.123.part") + " is an interrupted backup"
	if !strings.Contains(out, named) || strings.Count(out, "interrupted") != 1 {
		t.Errorf("it says %q", out)
	}
	wantFiles(t, dir, "backup", "backup.123.part", "backup.part", "other")
}

// A backup whose FILE has no directory names no file of its own.
func TestBackupInTheWorkingDirectoryNamesNotItsOwnPart(t *testing.T) {
	s := alone(t, nil)
	t.Chdir(t.TempDir())
	for _, file := range []string{"backup", "./other"} {
		out, err := runCommand(t, s.url, "backup", "-to", newIdentity(t).Recipient().String(), file)
		if err != nil || strings.Contains(out, "cut off") {
			t.Errorf("%s: %s, %v", file, out, err)
		}
	}
	wantFiles(t, ".", "backup", "other")
}

// What is kept is what the digest says is whole, and what a crash has left is in nobody's way.
func TestBackupKeepsWhatIsComplete(t *testing.T) {
	const body = "a backup"
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(body)))
	for _, test := range []struct {
		name, digest, failed string
		kept                 bool
	}{
		{"complete", sum, "", true},
		{"not confirmed", sum, "no leader", true},
		{"failed", "", "a disk", false},
		{"cut short", "", "", false},
		{"another", strings.Repeat("0", 64), "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/v1/backup/"+sum && test.failed == "":
					io.WriteString(w, "{}")
				case r.URL.Path != "/v1/backup":
					respond(w, http.StatusServiceUnavailable, test.failed)
				default:
					w.Header().Set("Trailer", trailerError+", "+trailerDigest)
					io.WriteString(w, body)
					w.Header().Set(trailerDigest, test.digest)
					if test.digest == "" {
						w.Header().Set(trailerError, test.failed)
					}
				}
			}))
			defer api.Close()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "backup.part"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := runCommand(t, api.URL, "backup", "-to", "age1", filepath.Join(dir, "backup"))
			if !test.kept {
				wantFiles(t, dir, "backup.part")
				if err == nil || strings.Contains(out, sum) || !strings.Contains(err.Error(), test.failed) {
					t.Errorf("%s, %v", out, err)
				}
				return
			}
			wantFiles(t, dir, "backup", "backup.part")
			if err != nil || !strings.Contains(out, sum) || !strings.Contains(out, test.failed) {
				t.Errorf("%s, %v", out, err)
			}
			if warned := strings.Contains(out, "the backup is good, but"); warned != (test.failed != "") {
				t.Errorf("%s", out)
			}
		})
	}
}
