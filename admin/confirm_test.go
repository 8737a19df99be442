package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring"
)

// process is the program with arguments, in a process of its own. With a limit no file of it grows beyond that, as on a full disk.
func process(t *testing.T, limit string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	if limit != "" {
		cmd = exec.CommandContext(t.Context(), "sh", append([]string{"-c", `ulimit -f "$0"; exec "$@"`, limit, os.Args[0]}, args...)...)
	}
	cmd.Env = append(os.Environ(), "KEYRING_COMMAND=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// lastBackup is what the status of a server shows.
func lastBackup(t *testing.T, s server) keyring.LastBackup {
	t.Helper()
	code, body := s.do(t, "GET", "/v1/status", "")
	var st Status
	if err := json.Unmarshal([]byte(body), &st); err != nil || code != http.StatusOK {
		t.Fatal(code, body, err)
	}
	return st.LastBackup
}

// before has something done with the answer of a server before its client has it, or in its place.
func before(t *testing.T, s server, does func(w http.ResponseWriter, r *http.Request, answer *http.Response, body []byte)) (url string) {
	t.Helper()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := http.Post(s.url+r.URL.Path, "application/json", r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Error(answer.Status, err)
		}
		does(w, r, answer, body)
	}))
	t.Cleanup(api.Close)
	return api.URL
}

// A backup that its client could not keep is none for the cluster.
func TestABackupThatIsNotKeptDoesNotCount(t *testing.T) {
	s := alone(t, nil)
	to, dir := newIdentity(t).Recipient().String(), t.TempDir()
	arguments := func(url string) []string {
		return []string{"-server", url, "backup", "-to", to, filepath.Join(dir, "backup")}
	}

	wantNone := func(t *testing.T) {
		t.Helper()
		if last := lastBackup(t, s); last != (keyring.LastBackup{}) {
			t.Errorf("the status shows %+v", last)
		}
	}
	t.Run("the disk is full", func(t *testing.T) {
		out, err := process(t, "1", arguments(s.url)...).CombinedOutput()
		if exit := (&exec.ExitError{}); !errors.As(err, &exit) || exit.ExitCode() != 1 || !bytes.Contains(out, []byte("too large")) {
			t.Errorf("%s, %v", out, err)
		}
		wantFiles(t, dir)
		wantNone(t)
	})
	t.Run("its name is taken", func(t *testing.T) {
		taken := before(t, s, func(w http.ResponseWriter, _ *http.Request, answer *http.Response, body []byte) {
			if err := os.Mkdir(filepath.Join(dir, "backup"), 0o700); err != nil {
				t.Error(err)
			}
			w.Header().Set("Trailer", trailerDigest)
			w.Write(body)
			w.Header().Set(trailerDigest, answer.Trailer.Get(trailerDigest))
		})
		if out, err := runCommand(t, "", arguments(taken)...); err == nil || !strings.Contains(err.Error(), "exists already") {
			t.Errorf("%s, %v", out, err)
		}
		wantFiles(t, dir, "backup")
		wantNone(t)
	})
	dir = t.TempDir()
	t.Run("it is killed", func(t *testing.T) {
		half := make(chan struct{})
		cmd := process(t, "", arguments(before(t, s, func(w http.ResponseWriter, r *http.Request, _ *http.Response, body []byte) {
			w.Write(body[:len(body)/2])
			http.NewResponseController(w).Flush()
			close(half)
			<-r.Context().Done() // its connection ends
		}))...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-half
		if err := errors.Join(cmd.Process.Kill(), cmd.Wait()); err == nil {
			t.Error("it was not killed")
		}
		wantNone(t)
	})
}

// Of a confirmation that does not arrive the backup is no worse. Its user is told, and the status asks for another one.
func TestABackupIsKeptWhoseConfirmationIsNot(t *testing.T) {
	for name, arrives := range map[string]bool{"not asked": false, "not answered": true} {
		t.Run(name, func(t *testing.T) {
			s := alone(t, nil)
			identity, file, confirmed := newIdentity(t), filepath.Join(t.TempDir(), "backup"), atomic.Int64{}
			cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v1/backup" {
					http.Redirect(w, r, s.url+r.URL.Path, http.StatusTemporaryRedirect)
					return
				}
				confirmed.Add(1)
				if arrives {
					if code, body := s.do(t, r.Method, r.URL.Path, ""); code != http.StatusOK {
						t.Error(code, body)
					}
				}
				panic(http.ErrAbortHandler)
			}))
			defer cut.Close()
			out, err := runCommand(t, cut.URL, "backup", "-to", identity.Recipient().String(), file)
			if err != nil || !strings.Contains(out, "the backup is good, but the cluster has not noted it") || confirmed.Load() == 0 {
				t.Fatalf("%s, %v, %d confirmations", out, err, confirmed.Load())
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m, err := keyring.VerifyBackup(f, identity)
			if err != nil || !strings.Contains(out, fmt.Sprintf("%x", m.SHA256)) {
				t.Errorf("%s, %v", out, err)
			}
			if last := lastBackup(t, s); (last.SHA256 == m.SHA256) != arrives {
				t.Errorf("the status shows %+v", last)
			}
		})
	}
}

// A backup that is kept is shown. What is no backup of this server's can't be confirmed.
func TestABackupThatIsKeptCounts(t *testing.T) {
	s := alone(t, nil)
	out, err := runCommand(t, s.url, "backup", "-to", newIdentity(t).Recipient().String(), filepath.Join(t.TempDir(), "backup"))
	sum, _, _ := strings.Cut(out, " ")
	if got := fmt.Sprintf("%x", [32]byte(lastBackup(t, s).SHA256)); err != nil || got != sum || strings.Contains(out, "has not noted it") {
		t.Errorf("%s, %v; the status shows %s", out, err, got)
	}
	for path, want := range map[string]int{"x": 400, strings.Repeat("0", 63): 400, strings.Repeat("0", 66): 400, strings.Repeat("0", 64): 404, sum: 200} {
		if code, body := s.do(t, "POST", "/v1/backup/"+path, ""); code != want {
			t.Errorf("confirm %s: %d %s, want %d", path, code, body, want)
		}
	}
}
