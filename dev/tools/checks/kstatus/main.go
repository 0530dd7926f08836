// Kstatus says how far one Kubernetes object is, as Flux, Argo CD and kpt would judge it.
//
//	kstatus < OBJECT.json   print {"status": "Current", "message": "…"}
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// verdict is what is printed; status is one of Current, InProgress, Failed, Terminating.
type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	judged, err := judge(os.Stdin)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(judged)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func judge(from io.Reader) (verdict, error) {
	text, err := io.ReadAll(from)
	if err != nil {
		return verdict{}, err
	}
	object := &unstructured.Unstructured{}
	// Not json.Unmarshal: kstatus wants whole numbers as int64.
	if err := object.UnmarshalJSON(text); err != nil {
		return verdict{}, err
	}
	result, err := status.Compute(object)
	if err != nil {
		return verdict{}, err
	}
	return verdict{Status: result.Status.String(), Message: result.Message}, nil
}
