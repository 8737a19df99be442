package admin

import (
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/bounded"
	"filippo.io/age"
)

// backupRequest asks for a backup that these can open.
type backupRequest struct {
	To []string `json:"to" bound:"elements=100,bytes=10000"` // age recipients: age1...
}

var backupType = bounded.For[backupRequest](maxBody)

// What follows the body of a backup: the digest if it is whole, and else an error.
const (
	trailerError  = "Backup-Error"
	trailerDigest = "Backup-Sha256"
	trailerSigner = "Backup-Signer"
)

// backup streams a backup, on the leader. For the cluster there is none before its client has confirmed that
// it is safe.
func (h *Handler) backup(w http.ResponseWriter, r *http.Request) {
	to, err := recipients(w, r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Trailer", strings.Join([]string{trailerError, trailerDigest, trailerSigner}, ", "))
	out := &patientWriter{w: w, conn: http.NewResponseController(w)}
	m, err := h.server.Keyring().WriteBackup(r.Context(), out, to...)
	if !out.begun {
		w.Header().Del("Trailer")
		h.refuse(w, r, err)
		return
	}
	if err != nil {
		w.Header().Set(trailerError, err.Error())
		return
	}
	w.Header().Set(trailerDigest, hex.EncodeToString(m.SHA256[:]))
	w.Header().Set(trailerSigner, m.Signer.String())
}

// patientWriter gives the client answerTime for each part of an answer.
type patientWriter struct {
	w     io.Writer
	conn  *http.ResponseController
	begun bool
}

func (p *patientWriter) Write(b []byte) (int, error) {
	p.begun = true
	p.conn.SetWriteDeadline(time.Now().Add(answerTime)) // an error means that there is none, as in tests
	return p.w.Write(b)
}

// backupAnswer names a backup.
type backupAnswer struct {
	Confirmed string `json:"confirmed"`
}

// confirmBackup notes a backup of that digest, which its client has made safe. It may be done twice.
func (h *Handler) confirmBackup(r *http.Request) (any, error) {
	sum, err := parseSum(r.PathValue("sha256"))
	if err != nil {
		return nil, badRequest{err}
	}
	err = h.server.ConfirmBackup(r.Context(), sum)
	if errors.Is(err, keyring.ErrUnknownBackup) {
		err = missing{err}
	}
	return backupAnswer{hex.EncodeToString(sum[:])}, err
}

func parseSum(text string) (sum [32]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(sum) {
		return sum, errors.New("want 64 hexadecimal digits")
	}
	return [32]byte(b), nil
}

func recipients(w http.ResponseWriter, r *http.Request) ([]age.Recipient, error) {
	if err := parameters(r, nil); err != nil {
		return nil, err
	}
	if err := readBody(w, r); err != nil {
		return nil, err
	}
	in, err := decode(r, backupType)
	if err != nil {
		return nil, err
	}
	to, err := age.ParseRecipients(strings.NewReader(strings.Join(in.To, "\n")))
	if err != nil {
		return nil, badRequest{err}
	}
	return to, nil
}
