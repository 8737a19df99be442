package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"example.com/keyring"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// backupRequest asks for a backup that these can open.
type backupRequest struct {
	To []string `json:"to"` // age recipients: age1...
}

// What follows the body of a backup: it is whole if there is a digest, and no error.
const (
	trailerError  = "Backup-Error"
	trailerDigest = "Backup-Sha256"
)

// backup streams a backup, on the leader.
func (s *server) backup(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	to, err := s.recipients(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", trailerError+", "+trailerDigest)
	begun := &begunWriter{ResponseWriter: w}
	m, err := s.node.Keyring().Backup(r.Context(), begun, to...)
	switch {
	case err == nil:
		w.Header().Set(trailerDigest, hex.EncodeToString(m.SHA256[:]))
	case begun.begun:
		w.Header().Set(trailerError, err.Error())
	default:
		w.Header().Del("Trailer")
		s.refuse(w, r, err)
	}
}

func (s *server) recipients(r *http.Request) ([]age.Recipient, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	if err := s.person(r); err != nil {
		return nil, err
	}
	var in backupRequest
	if err := read(r, &in); err != nil {
		return nil, err
	}
	to, err := age.ParseRecipients(strings.NewReader(strings.Join(in.To, "\n")))
	if err != nil {
		return nil, badRequest{err}
	}
	return to, nil
}

// begunWriter knows whether anything was written.
type begunWriter struct {
	http.ResponseWriter
	begun bool
}

func (b *begunWriter) Write(p []byte) (int, error) {
	b.begun = true
	return b.ResponseWriter.Write(p)
}

// backup writes a file that verify finds good, or none.
func (c cli) backup(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("backup", flag.ContinueOnError)
	to := fs.String("to", "", "")
	args, err = flags(fs, args, 1)
	if err != nil {
		return err
	}
	in, err := json.Marshal(backupRequest{To: strings.Split(*to, ",")})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/v1/backup", bytes.NewReader(in))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answerError(resp)
	}
	part := args[0] + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	digest := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, digest), resp.Body)
	if err == nil {
		err = f.Sync()
	}
	sum := hex.EncodeToString(digest.Sum(nil))
	switch err = errors.Join(err, f.Close()); {
	case err != nil:
	case resp.Trailer.Get(trailerError) != "":
		err = errors.New(resp.Trailer.Get(trailerError))
	case resp.Trailer.Get(trailerDigest) != sum:
		err = errors.New("the backup is cut short")
	default:
		err = os.Rename(part, args[0])
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	fmt.Fprintf(c.out, "%s  %s\n", sum, args[0])
	return nil
}

// backupFile is what verify and restore read.
type backupFile struct {
	path       string
	identities []age.Identity
}

// backupFlags parses the arguments of verify and restore, of which the last is the backup.
func backupFlags(fs *flag.FlagSet, args []string, n int) ([]string, backupFile, error) {
	identity := fs.String("identity", "", "")
	args, err := flags(fs, args, n)
	if err != nil {
		return nil, backupFile{}, err
	}
	f, err := os.Open(*identity)
	if err != nil {
		return nil, backupFile{}, fmt.Errorf("-identity: %w", err)
	}
	defer f.Close()
	with, err := age.ParseIdentities(f)
	if err != nil {
		return nil, backupFile{}, fmt.Errorf("-identity: %w", err)
	}
	return args, backupFile{args[n-1], with}, nil
}

// tell prints what is in a backup.
func tell(out io.Writer, m keyring.Manifest) {
	fmt.Fprintf(out, "%x: %d keys and all secrets as of log index %d, %s\n", m.SHA256, len(m.Keys), m.Raft.Index, m.Created.Format("2006-01-02 15:04:05 MST"))
}

// verify reads a whole backup.
func (c cli) verify(args []string) error {
	_, b, err := backupFlags(flag.NewFlagSet("verify", flag.ContinueOnError), args, 1)
	if err != nil {
		return err
	}
	f, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := keyring.VerifyBackup(f, b.identities...)
	if err != nil {
		return err
	}
	tell(c.out, m)
	return nil
}

// restore makes the directory of one server from a backup, with the KEK and certificate that init
// has made. The others start with none and join it.
func (c cli) restore(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("restore", flag.ContinueOnError)
	want := fs.String("sha256", "", "")
	args, b, err := backupFlags(fs, args, 3)
	if err != nil {
		return err
	}
	o := keyring.RestoreOptions{Identities: b.identities}
	if *want != "" {
		sum, err := hex.DecodeString(*want)
		if err != nil || len(sum) != len(o.Digest) {
			return errors.New("-sha256: want 64 hexadecimal digits")
		}
		o.Digest = [32]byte(sum)
	}
	_, conf, err := newServer(args[0], raft.ServerID(args[1]), options{})
	if err != nil {
		return err
	}
	f, err := os.Open(b.path)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := keyring.RestoreNode(ctx, f, conf, o)
	if err != nil {
		return err
	}
	tell(c.out, m)
	return nil
}
